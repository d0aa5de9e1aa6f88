// A monitor: serves the clients of a chardev, one after the other, by the QMP protocol. Reading and
// writing never block, and a client that does not read costs at most Monitor::most_pending bytes.
#pragma once

#include <cstddef>
#include <memory>

#include "monitor/chardev.h"
#include "monitor/services.h"
#include "monitor/session.h"

namespace vise {

class Monitor {
 public:
  /// A client with so many bytes unread gets no more commands answered.
  static constexpr std::size_t high_water = std::size_t{1} << 20;
  /// One that lets events pile up beyond this is disconnected.
  static constexpr std::size_t most_pending = std::size_t{64} << 20;

  Monitor(Services& services, Chardev& chardev, QmpSession::Layout layout);
  ~Monitor();
  Monitor(const Monitor&) = delete;

  /// Until stop(), or until no more clients can come.
  Task<void> run();
  /// Sends what is left to a client that reads, for at most a second, and ends run().
  void stop();

 private:
  class Connection;
  Services& services_;
  Chardev& chardev_;
  const QmpSession::Layout layout_;
  bool stopped_ = false;
  std::unique_ptr<Connection> connection_;  // the present one
};

}  // namespace vise
