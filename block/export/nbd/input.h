// What a client sends, buffered: many small requests come out of one system call.
#pragma once

#include <cstddef>
#include <span>

#include "export/nbd/stream.h"
#include "vise/buffer.h"
#include "vise/task.h"

namespace vise::nbd {

class Input {
 public:
  explicit Input(Stream& stream) : stream_(stream), buffer_(capacity) {}

  /// The next `length` (at most 4096) bytes, valid until the next call. Empty at the end of the
  /// stream; Error(ECONNRESET) if it ends within them.
  Task<std::span<const std::byte>> take(std::size_t length);
  /// Fills `data`. Throws Error(ECONNRESET) if the stream ends before.
  Task<void> read(std::span<std::byte> data);
  /// Reads and forgets. Throws as read() does.
  Task<void> skip(std::uint64_t length);
  /// Bytes that have been received but not taken.
  std::size_t buffered() const { return end_ - begin_; }

 private:
  static constexpr std::size_t capacity = 64u << 10;

  Stream& stream_;
  Buffer buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  // After a long payload the next message is fetched alone, so that the payload behind it need not
  // be copied out of the buffer.
  bool long_payloads_ = false;
};

}  // namespace vise::nbd
