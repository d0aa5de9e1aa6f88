#include "export/nbd/input.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "vise/error.h"

namespace vise::nbd {

namespace {

constexpr std::size_t long_payload = 16u << 10;  // bytes beyond those that were buffered anyway

[[noreturn]] void throw_cut_off() {
  throw Error(ECONNRESET, "The connection ended within a message");
}

}  // namespace

Task<std::span<const std::byte>> Input::take(std::size_t length) {
  assert(length <= 4096);
  if (capacity - begin_ < std::max<std::size_t>(length, 4096)) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, buffered());
    end_ -= begin_;
    begin_ = 0;
  }
  while (buffered() < length) {
    if (begin_ == end_) begin_ = end_ = 0;
    stream_.in_message = begin_ != end_;
    const std::size_t room = long_payloads_ ? length - buffered() : capacity - end_;
    const std::size_t count = co_await stream_.receive(buffer_.span().subspan(end_, room));
    stream_.in_message = false;
    if (count == 0) {
      if (buffered() > 0) throw_cut_off();
      co_return std::span<const std::byte>();
    }
    end_ += count;
  }
  long_payloads_ = false;
  begin_ += length;
  co_return std::span<const std::byte>(buffer_.data() + begin_ - length, length);
}

Task<void> Input::read(std::span<std::byte> data) {
  const std::size_t there = std::min(buffered(), data.size());
  if (there > 0) std::memcpy(data.data(), buffer_.data() + begin_, there);
  begin_ += there;
  data = data.subspan(there);
  long_payloads_ = data.size() >= long_payload;
  while (!data.empty()) {
    stream_.in_message = true;
    const std::size_t count = co_await stream_.receive(data);
    stream_.in_message = false;
    if (count == 0) throw_cut_off();
    data = data.subspan(count);
  }
}

Task<void> Input::skip(std::uint64_t length) {
  while (length > 0) {
    const std::size_t part = std::min<std::uint64_t>(length, 4096);
    const std::span<const std::byte> bytes = co_await take(part);
    if (bytes.empty()) throw_cut_off();
    length -= part;
  }
}

}  // namespace vise::nbd
