// One connection to an NBD server: a handle of libnbd on our event loop.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "protocol/nbd/client.h"
#include "util/fd_watch.h"
#include "util/io_engine.h"
#include "vise/task.h"

struct nbd_handle;

namespace vise::nbd {

/// Makes TLS with those credentials a condition of connecting to `address`. Throws Error.
void prepare_tls(nbd_handle* handle, const SocketAddress& address,
                 const TlsCredentials& credentials);

/// What the server says about the export.
struct ExportFacts {
  std::uint64_t size = 0;     // bytes
  std::uint32_t minimum = 1;  // block sizes, bytes
  std::uint32_t preferred = 4096;
  std::uint32_t maximum = 32u << 20;
  bool read_only = false;
  bool can_flush = false;
  bool can_fua = false;
  bool can_trim = false;
  bool can_zero = false;
  bool can_fast_zero = false;
  bool can_tell_status = false;  // base:allocation
};

/// A stretch of equal status.
struct StatusAnswer {
  std::uint64_t length = 0;  // bytes
  std::uint32_t flags = 0;
};

/// The connection broke, or was broken already. Whether the request was done is not known.
class ConnectionLost {};

class Connection {
 public:
  /// Connects and negotiates on a thread of `engine`. Throws Error. `interrupt`, while it is set,
  /// ends the attempt when called.
  static Task<std::unique_ptr<Connection>> open(Target target, IoEngine& engine,
                                                std::function<void()>& interrupt);
  Connection(const Connection&) = delete;
  ~Connection();  // run() has ended (asserted)

  const ExportFacts& facts() const { return facts_; }

  /// Moves bytes until the connection is lost or close() is called. Awaited by the owner.
  Task<void> run();
  /// True once requests cannot succeed any more.
  bool lost() const { return lost_; }
  /// Says goodbye; requests in flight are lost.
  void close();

  // Requests. They throw Error if the server refuses, ConnectionLost.
  Task<void> read(std::uint64_t offset, std::span<std::byte> data);
  Task<void> write(std::uint64_t offset, std::span<const std::byte> data, std::uint32_t flags);
  Task<void> zero(std::uint64_t offset, std::uint64_t length, std::uint32_t flags);
  Task<void> trim(std::uint64_t offset, std::uint64_t length);
  Task<void> flush();
  Task<StatusAnswer> status(std::uint64_t offset, std::uint64_t length);

 private:
  struct Request;
  struct Attempt;
  struct HandleCloser {
    void operator()(nbd_handle* handle) const;
  };
  using Handle = std::unique_ptr<nbd_handle, HandleCloser>;

  explicit Connection(Handle handle);
  static std::optional<Error> connect(nbd_handle* handle, const Target& target, Attempt& attempt);
  void read_facts();
  Task<void> finish(Request& request, std::int64_t cookie);
  void notify(unsigned direction);

  Handle handle_;
  ExportFacts facts_;
  FdWatch watch_;
  bool lost_ = false;
  bool running_ = false;
};

}  // namespace vise::nbd
