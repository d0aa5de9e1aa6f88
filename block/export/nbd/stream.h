// The byte stream of one client.
#pragma once

#include <sys/uio.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>

#include "util/fd_watch.h"
#include "util/file_descriptor.h"
#include "vise/task.h"

namespace vise::nbd {

/// A connected, nonblocking socket. One coroutine may receive while another sends.
class Stream {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Stream(FileDescriptor socket);
  Stream(const Stream&) = delete;

  /// At least one byte, up to all of `data`; 0 at the end of the stream. Throws Error for a broken
  /// connection.
  Task<std::size_t> receive(std::span<std::byte> data);
  /// All of them; the array is used up. Throws Error for a broken connection.
  Task<void> send(std::span<iovec> parts);

  /// Ends all waiting, now and later. Any member may be called afterwards.
  void shut_down();
  bool is_shut_down() const { return shut_down_; }

  /// While true, what receive() waits for is the rest of a message: the peer owes it.
  bool in_message = false;
  /// Has the peer owed us bytes, or let ours lie, since `time` or longer?
  bool stalled_since(Clock::time_point time) const;

 private:
  FileDescriptor socket_;
  FdWatch readable_;
  FdWatch writable_;
  std::optional<Clock::time_point> receiving_since_;  // set while waiting
  std::optional<Clock::time_point> sending_since_;    // set while waiting
  bool drained_ = false;  // the last receive left nothing behind: wait before the next
  bool shut_down_ = false;
};

}  // namespace vise::nbd
