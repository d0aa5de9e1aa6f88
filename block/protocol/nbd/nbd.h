// The driver nbd: an export of an NBD server as a node.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "protocol/nbd/connection.h"
#include "vise/driver.h"
#include "vise/sync.h"

namespace vise {

extern const DriverType nbd_driver;

struct NbdOptions {
  nbd::Target target;
  std::chrono::seconds reconnect_delay{0};
  std::chrono::seconds open_timeout{0};
};

/// Requests that fail because the connection broke are repeated on the next one: all that NBD has
/// can be done twice. The next one is sought until the driver closes.
class NbdDriver final : public Driver {
 public:
  NbdDriver(Node& node, NbdOptions options, IoEngine& engine);

  /// Connects. Throws Error after open_timeout.
  Task<void> start();
  const nbd::ExportFacts& facts() const { return facts_; }

  std::uint64_t size() const override { return facts_.size; }
  Limits limits() const override;
  Task<Extent> map(GuestRange range, MapMode mode) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> flush() override;
  Task<void> reopen(bool read_only) override;
  Task<void> close() override;

 private:
  template <class Body>
  Task<void> perform(Body body);
  Task<std::shared_ptr<nbd::Connection>> connection();
  Task<void> keep_connected();
  Task<void> reconnect();
  void check_same_export(const nbd::ExportFacts& facts) const;
  Task<void> pause(std::chrono::milliseconds duration);
  bool may_wait() const;

  Node& node_;
  const NbdOptions options_;
  IoEngine& engine_;
  nbd::ExportFacts facts_;
  std::shared_ptr<nbd::Connection> connection_;  // null while there is none
  std::function<void()> interrupt_;              // ends an attempt to connect, if there is one
  std::optional<Error> fatal_;                   // no attempt can succeed any more
  std::chrono::steady_clock::time_point lost_at_;
  WaitQueue changed_;  // connected, given up, closing, time to fail
  TaskScope tasks_;
  Timer timer_;
  bool closing_ = false;
};

}  // namespace vise
