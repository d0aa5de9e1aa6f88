// The byte stream of one client: a socket, perhaps with TLS on it.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "util/fd_watch.h"
#include "util/file_descriptor.h"
#include "util/tls_credentials.h"
#include "vise/task.h"

namespace vise::nbd {

class TlsSession;

/// A connected, nonblocking socket. One coroutine may receive while another sends.
class Stream {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Stream(FileDescriptor socket);
  Stream(const Stream&) = delete;
  ~Stream();

  /// At least one byte, up to all of `data`; 0 at the end of the stream. Throws Error for a broken
  /// connection.
  Task<std::size_t> receive(std::span<std::byte> data);
  /// All of them; the array is used up. Throws Error for a broken connection.
  Task<void> send(std::span<iovec> parts);

  /// Puts TLS on it, as the server. Throws Error if the handshake fails; the stream is of no use
  /// then.
  Task<void> start_tls(std::shared_ptr<TlsCredentials> credentials);
  bool has_tls() const { return tls_ != nullptr; }
  /// The distinguished name of the peer's certificate; empty without TLS or certificate.
  std::string peer_name() const;
  /// Tells the peer that nothing more comes, where TLS has a way to say so.
  void say_goodbye() noexcept;

  /// Ends all waiting, now and later. Any member may be called afterwards.
  void shut_down();
  bool is_shut_down() const { return shut_down_; }

  /// While true, what receive() waits for is the rest of a message: the peer owes it.
  bool in_message = false;
  /// Has the peer owed us bytes, or let ours lie, since `time` or longer?
  bool stalled_since(Clock::time_point time) const;

 private:
  friend class TlsSession;
  enum class Direction { in, out };
  /// Until the socket is ready for that, or the stream is shut down.
  Task<void> wait(Direction direction);

  FileDescriptor socket_;
  FdWatch readable_;
  FdWatch writable_;
  std::optional<Clock::time_point> receiving_since_;  // set while waiting
  std::optional<Clock::time_point> sending_since_;    // set while waiting
  bool drained_ = false;  // the last receive left nothing behind: wait before the next
  bool shut_down_ = false;
  std::unique_ptr<TlsSession> tls_;
};

}  // namespace vise::nbd
