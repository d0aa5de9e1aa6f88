// What both I/O engines share: whole transfers out of short and interrupted ones.
#include "util/io_engine.h"

#include <limits.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cerrno>
#include <utility>
#include <vector>

#include "vise/error.h"

namespace vise {

namespace {

// What one system call is given: the kernel stops at 2 GiB less a page, and io_uring counts in 32
// bits.
constexpr std::uint64_t most_per_call = 1u << 30;

// The iovec array of one transfer. Nearly all have few segments and stay within the frame.
class Vectors {
 public:
  void assign(const ConstIoVec& data) {
    count_ = 0;
    many_.clear();
    data.for_each([this](std::span<const std::byte> part) {
      add({const_cast<std::byte*>(part.data()), part.size()});
      return count_ < IOV_MAX;
    });
  }
  const iovec* data() const { return many_.empty() ? few_.data() : many_.data(); }
  unsigned count() const { return count_; }

 private:
  void add(iovec vector) {
    if (count_ == few_.size()) many_.assign(few_.begin(), few_.end());
    if (count_ < few_.size()) {
      few_[count_] = vector;
    } else {
      many_.push_back(vector);
    }
    ++count_;
  }

  std::array<iovec, 8> few_;
  std::vector<iovec> many_;
  unsigned count_ = 0;
};

}  // namespace

struct IoEngine::Awaiter {
  IoEngine& engine;
  Request& request;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    request.waiter = handle;
    engine.start(request);
  }
  std::int64_t await_resume() const noexcept { return request.result; }
};

// Gives the bytes done, which are fewer than asked for at the end of the file; or a negative errno.
Task<std::int64_t> IoEngine::transfer(Operation operation, int fd, ConstIoVec data,
                                      std::uint64_t offset, Durability durability, Medium medium) {
  Vectors vectors;
  std::uint64_t done = 0;
  while (done < data.size()) {
    vectors.assign(data.slice(done, std::min(data.size() - done, most_per_call)));
    Request request{.operation = operation, .durability = durability, .medium = medium, .fd = fd};
    request.vectors = vectors.data();
    request.vector_count = vectors.count();
    request.offset = offset + done;
    const std::int64_t result = co_await Awaiter{*this, request};
    if (result == -EINTR || result == -EAGAIN) continue;
    // A direct read that stopped at an unaligned end of file cannot be continued from there.
    if (result == -EINVAL && operation == Operation::read && done > 0) break;
    if (result < 0) co_return result;
    if (result == 0) break;
    done += static_cast<std::uint64_t>(result);
  }
  co_return static_cast<std::int64_t>(done);
}

// What of `data` the page cache has at once. Small reads are answered here in a quarter of the
// time that the way through an engine and the loop takes.
std::uint64_t IoEngine::read_cached(int fd, const IoVec& data, std::uint64_t offset) {
  constexpr std::size_t most_segments = 8;
  constexpr std::uint64_t most_bytes = 64 << 10;  // more is worth a thread's or the kernel's time
  constexpr unsigned most_in_a_row = 32;          // then the loop has its turn
  constexpr unsigned most_skipped = 256;          // when the data is not cached anyway
  if (data.size() > most_bytes || data.segment_count() > most_segments) return 0;
  if (skip_cache_ > 0) {
    --skip_cache_;
    return 0;
  }
  if (++cached_reads_ > most_in_a_row) {
    cached_reads_ = 0;
    return 0;
  }
  Vectors vectors;
  vectors.assign(data);
  const ssize_t result = preadv2(fd, vectors.data(), static_cast<int>(vectors.count()),
                                 static_cast<off_t>(offset), RWF_NOWAIT);
  if (result > 0) {
    next_skip_ = 1;
    return static_cast<std::uint64_t>(result);
  }
  skip_cache_ = next_skip_;
  next_skip_ = std::min(next_skip_ * 2, most_skipped);
  return 0;
}

Task<std::uint64_t> IoEngine::read(int fd, IoVec data, std::uint64_t offset, Medium medium) {
  const std::uint64_t cached = medium == Medium::page_cache ? read_cached(fd, data, offset) : 0;
  if (cached == data.size()) co_return cached;
  const std::int64_t result = co_await transfer(Operation::read, fd, data.slice(cached),
                                                offset + cached, Durability::cached, medium);
  if (result < 0) throw Error::system_error(static_cast<int>(-result));
  co_return cached + static_cast<std::uint64_t>(result);
}

Task<void> IoEngine::write(int fd, ConstIoVec data, std::uint64_t offset, Durability durability,
                           Medium medium) {
  const std::int64_t result =
      co_await transfer(Operation::write, fd, data, offset, durability, medium);
  if (result < 0) throw Error::system_error(static_cast<int>(-result));
  // A write of nothing that is no error: a device whose end was reached.
  if (static_cast<std::uint64_t>(result) < data.size()) throw Error::system_error(ENOSPC);
}

Task<void> IoEngine::sync(int fd) {
  for (;;) {
    Request request{.operation = Operation::sync, .fd = fd};
    const std::int64_t result = co_await Awaiter{*this, request};
    if (result == -EINTR || result == -EAGAIN) continue;
    if (result < 0) throw Error::system_error(static_cast<int>(-result));
    co_return;
  }
}

Task<int> IoEngine::allocate(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  for (;;) {
    Request request{.operation = Operation::allocate, .fd = fd, .mode = mode};
    request.offset = offset;
    request.length = length;
    const std::int64_t result = co_await Awaiter{*this, request};
    if (result == -EINTR || result == -EAGAIN) continue;
    co_return result < 0 ? static_cast<int>(-result) : 0;
  }
}

Task<std::int64_t> IoEngine::call(std::function<std::int64_t()> function) {
  Request request{.operation = Operation::call};
  request.function = &function;
  const std::int64_t result = co_await Awaiter{*this, request};
  co_return result;
}

}  // namespace vise
