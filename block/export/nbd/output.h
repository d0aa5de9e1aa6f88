// Replies on their way to a client: queued, and sent many at a time.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "export/nbd/stream.h"
#include "vise/buffer.h"
#include "vise/sync.h"
#include "vise/task.h"

namespace vise::nbd {

/// A header, and data behind it. The data lies in `storage`, or in that of a message that is queued
/// right behind this one.
struct Message {
  static constexpr std::size_t max_header = 64;
  std::array<std::byte, max_header> header;
  std::size_t header_size = 0;
  std::span<const std::byte> data;
  Buffer storage;
  std::uint64_t charge = 0;  // bytes of the client's budget that are free again when it is sent
  bool last = true;          // of its request
};

/// The order of messages is kept. After the stream has broken, messages are dropped.
class Output {
 public:
  explicit Output(Stream& stream) : stream_(stream) {}

  void push(Message message);
  /// No more messages will come.
  void finish();
  /// Sends until finish() and all is sent. Calls on_sent for every message, dropped ones too.
  template <class OnSent>
  Task<void> run(OnSent on_sent);

 private:
  static constexpr std::size_t max_batch = 256;  // messages for one system call
  Task<bool> ready();
  Task<void> send_batch(std::size_t count);

  Stream& stream_;
  std::deque<Message> queue_;
  std::vector<iovec> parts_;
  WaitQueue changed_;
  bool finished_ = false;
  bool broken_ = false;
};

template <class OnSent>
Task<void> Output::run(OnSent on_sent) {
  for (;;) {
    const bool more = co_await ready();
    if (!more) co_return;
    const std::size_t count = queue_.size() < max_batch ? queue_.size() : max_batch;
    co_await send_batch(count);
    for (std::size_t i = 0; i < count; ++i) {
      on_sent(queue_.front());
      queue_.pop_front();
    }
  }
}

}  // namespace vise::nbd
