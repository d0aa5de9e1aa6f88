// Copying from file to file without passing through memory: copy_file_range(2).
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "protocol/file.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise {

namespace {

// "Not between these two", or not on this machine.
bool is_refusal(int code) {
  return code == EXDEV || code == EOPNOTSUPP || code == ENOSYS || code == EINVAL;
}

// 0, or a negative errno. A source that ends before has been cut by somebody else: it is for
// reading to say what is there instead.
std::int64_t copy_all(FileStretch source, int fd, std::uint64_t offset) {
  auto from = static_cast<off_t>(source.offset);
  auto to = static_cast<off_t>(offset);
  for (std::uint64_t left = source.length; left > 0;) {
    const ssize_t copied = copy_file_range(source.fd, &from, fd, &to, left, 0);
    if (copied < 0 && errno == EINTR) continue;
    if (copied < 0) return -errno;
    if (copied == 0) return -EINVAL;
    left -= static_cast<std::uint64_t>(copied);
  }
  return 0;
}

}  // namespace

// What lies behind the end of the file reads as zeros, which nobody can copy.
Task<std::uint64_t> FileDriver::copy_out(GuestRange range, CopySink& sink) {
  const std::uint64_t offset = range.start.bytes();
  if (kind_ != Kind::regular || offset >= size_) co_return 0;
  co_return co_await sink.take({fd_.get(), offset, std::min(range.length, size_ - offset)});
}

Task<bool> FileDriver::copy_in(GuestOffset offset, FileStretch source, WriteFlags) {
  if (kind_ != Kind::regular) co_return false;
  struct Finish {
    FileDriver& driver;
    ~Finish() {
      driver.extents_.forget();
      driver.update_size();
    }
  } finish{*this};
  const int fd = fd_.get();
  const std::uint64_t place = offset.bytes();
  const std::int64_t result =
      co_await engine_.call([source, fd, place] { return copy_all(source, fd, place); });
  const int code = static_cast<int>(-result);
  if (code == 0) co_return true;
  if (is_refusal(code)) co_return false;
  throw Error::system_error(code);
}

}  // namespace vise
