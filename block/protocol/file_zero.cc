// Zeroing, discarding and changing the size of a file.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "protocol/file.h"
#include "util/io_engine.h"
#include "vise/buffer.h"
#include "vise/error.h"

namespace vise {

namespace {

// fallocate() says "not here" in several ways.
bool is_unsupported(int code) {
  return code == EOPNOTSUPP || code == ENOSYS || code == ENODEV || code == ENOTTY || code == EINVAL;
}

}  // namespace

// The two below give false where the file system or device cannot do it, and remember that.
Task<bool> FileDriver::zero_range(GuestRange range) {
  if (!can_zero_range_) co_return false;
  // Devices do not grow, and refuse the mode without KEEP_SIZE.
  const int mode = FALLOC_FL_ZERO_RANGE | (kind_ == Kind::block ? FALLOC_FL_KEEP_SIZE : 0);
  const int code = co_await engine_.allocate(fd_.get(), mode, range.start.bytes(), range.length);
  if (code == 0) co_return true;
  if (!is_unsupported(code)) throw Error::system_error(code);
  // EINVAL may be about this range only (the alignment of a device).
  if (code != EINVAL) can_zero_range_ = false;
  co_return false;
}

Task<bool> FileDriver::punch_hole(GuestRange range) {
  if (!can_punch_hole_) co_return false;
  const int code = co_await engine_.allocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                             range.start.bytes(), range.length);
  if (code == 0) co_return true;
  if (!is_unsupported(code)) throw Error::system_error(code);
  if (code != EINVAL) can_punch_hole_ = false;
  co_return false;
}

// By writing the last block of `range`, which is ours to change: ftruncate() would cut off what
// another request is just writing further behind.
Task<void> FileDriver::extend_over(GuestRange range) {
  const std::uint64_t block = std::min<std::uint64_t>(alignment_.request, range.length);
  const Buffer zeroes = Buffer::zeroed(block);
  co_await engine_.write(fd_.get(), zeroes.span(), range.end().bytes() - block);
}

// What may_unmap allows: a hole.
Task<bool> FileDriver::unmap_to_zero(GuestRange range) {
  // Behind the end of the file everything reads as zeros once the file is long enough.
  const bool is_new = kind_ == Kind::regular && range.start.bytes() >= size_;
  if (!is_new) {
    const bool punched = co_await punch_hole(range);
    if (!punched) co_return false;
  }
  if (kind_ == Kind::regular && range.end().bytes() > size_) co_await extend_over(range);
  co_return true;
}

// For file systems that have holes but no ZERO_RANGE (tmpfs).
Task<bool> FileDriver::punch_and_allocate(GuestRange range) {
  if (kind_ != Kind::regular) co_return false;
  const bool punched = co_await punch_hole(range);
  if (!punched) co_return false;
  const int code = co_await engine_.allocate(fd_.get(), 0, range.start.bytes(), range.length);
  if (code == 0) co_return true;
  if (!is_unsupported(code)) throw Error::system_error(code);
  co_return false;
}

Task<void> FileDriver::write_zeroes(GuestRange range, ZeroFlags flags) {
  struct Finish {
    FileDriver& driver;
    ~Finish() {
      driver.extents_.forget();
      if (driver.kind_ == Kind::regular) driver.update_size();
    }
  } finish{*this};

  bool done = false;
  if (flags.may_unmap) done = co_await unmap_to_zero(range);
  // A device may write the zeros of ZERO_RANGE one by one: as slow as the fallback not wanted.
  if (!done && !(kind_ == Kind::block && flags.no_fallback)) done = co_await zero_range(range);
  if (!done) done = co_await punch_and_allocate(range);
  if (!done) throw Error::system_error(ENOTSUP);
}

Task<void> FileDriver::discard(GuestRange range) {
  if (kind_ == Kind::block) {
    const int fd = fd_.get();
    const std::uint64_t stretch[2] = {range.start.bytes(), range.length};
    const std::int64_t result = co_await engine_.call([fd, &stretch]() -> std::int64_t {
      return ioctl(fd, BLKDISCARD, stretch) < 0 ? -errno : 0;
    });
    const int code = static_cast<int>(-result);
    if (code != 0 && !is_unsupported(code)) throw Error::system_error(code);
    co_return;
  }
  // A hint: where holes cannot be made, all stays as it is.
  const bool punched = co_await punch_hole(range);
  if (punched) extents_.forget();
}

Task<void> FileDriver::set_size(std::uint64_t size) {
  const int fd = fd_.get();
  const std::int64_t result = co_await engine_.call([fd, size]() -> std::int64_t {
    return ftruncate(fd, static_cast<off_t>(size)) < 0 ? -errno : 0;
  });
  if (result < 0) throw Error::system_error(static_cast<int>(-result));
  size_ = size;
  extents_.forget();
}

Task<int> extend_file(IoEngine& engine, int fd, std::uint64_t from, std::uint64_t to,
                      Preallocation preallocation) {
  if (preallocation == Preallocation::falloc) {
    // The C library's, since it writes to each block where the file system cannot reserve.
    const std::int64_t result = co_await engine.call([fd, from, to]() -> std::int64_t {
      return posix_fallocate(fd, static_cast<off_t>(from), static_cast<off_t>(to - from));
    });
    co_return static_cast<int>(result);
  }
  if (preallocation == Preallocation::off) {
    const std::int64_t result = co_await engine.call([fd, to]() -> std::int64_t {
      return ftruncate(fd, static_cast<off_t>(to)) < 0 ? errno : 0;
    });
    co_return static_cast<int>(result);
  }
  constexpr std::uint64_t step = 1 << 20;
  const Buffer zeroes = Buffer::zeroed(step);
  for (std::uint64_t offset = from; offset < to;) {
    const std::uint64_t next = std::min(to, (offset / step + 1) * step);
    const ConstIoVec data(zeroes.span().first(next - offset));
    try {
      co_await engine.write(fd, data, offset);
    } catch (const Error& error) {
      co_return error.code();
    }
    offset = next;
  }
  co_return 0;
}

Task<void> FileDriver::grow(std::uint64_t size, Preallocation preallocation) {
  const std::uint64_t old_size = size_;
  // The old and the new end need no alignment, so no O_DIRECT either.
  FileDescriptor buffered;
  if (options_.direct) buffered = open_again(O_RDWR);
  const int fd = options_.direct ? buffered.get() : fd_.get();
  const int code = co_await extend_file(engine_, fd, old_size, size, preallocation);
  extents_.forget();
  if (code != 0) {
    co_await set_size(old_size);
    throw Error::system_error(code);
  }
  size_ = size;
}

Task<void> FileDriver::truncate(std::uint64_t size, TruncateOptions options) {
  if (options.preallocation == Preallocation::metadata) {
    throw Error(ENOTSUP,
                "A file has no metadata to preallocate (preallocation: off, falloc, full)");
  }
  if (size > INT64_MAX) throw Error::system_error(EFBIG);
  if (kind_ != Kind::regular) {
    const bool fits = options.exact ? size == size_ : size <= size_;
    if (!fits) throw Error(ENOTSUP, "The size of a device cannot be changed");
    co_return;
  }
  if (size < size_ && !options.allow_shrink) {
    throw Error(EINVAL, "The file would become smaller");
  }
  if (size > size_) {
    co_await grow(size, options.preallocation);
  } else if (size < size_) {
    co_await set_size(size);
  }
}

}  // namespace vise
