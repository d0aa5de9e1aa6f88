// Which bytes are locked, and how a conflict is seen.
#include "protocol/file_lock.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "vise/error.h"

namespace vise {

namespace {

constexpr off_t used_bytes = 100;
constexpr off_t unshared_bytes = 200;

struct NamedPermission {
  Permission permission;
  off_t bit;
  std::string_view name;  // in messages; scripts look for QEMU's words
};
constexpr std::array<NamedPermission, 4> permissions = {{
    {Permission::consistent_read, 0, "consistent read"},
    {Permission::write, 1, "write"},
    {Permission::write_unchanged, 2, "write unchanged"},
    {Permission::resize, 3, "resize"},
}};

// 0 or the errno.
int set_lock(int fd, off_t byte, short type) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  int result = 0;
  do {
    result = fcntl(fd, F_OFD_SETLK, &lock);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? errno : 0;
}

// True if another open file description holds a lock on the byte.
bool is_held_elsewhere(int fd, off_t byte) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  if (fcntl(fd, F_OFD_GETLK, &lock) < 0) {
    throw Error::system_error(errno, fmt::format("Failed to query lock byte {}", byte));
  }
  return lock.l_type != F_UNLCK;
}

// Calls f(byte) for each byte that `bytes` has and `except` has not.
template <class F>
void for_each_byte(PermissionSet bytes, PermissionSet except, off_t base, F f) {
  for (const NamedPermission& entry : permissions) {
    if (bytes.has(entry.permission) && !except.has(entry.permission)) f(base + entry.bit);
  }
}

}  // namespace

FileLocks::FileLocks(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

bool FileLocks::supported(int fd) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  return fcntl(fd, F_OFD_GETLK, &lock) == 0;
}

void FileLocks::lock(Bytes bytes, Bytes except) {
  int failed = 0;
  off_t failed_byte = 0;
  const auto take = [&](off_t byte) {
    if (failed != 0) return;
    failed = set_lock(fd_, byte, F_RDLCK);
    failed_byte = byte;
  };
  for_each_byte(bytes.used, except.used, used_bytes, take);
  for_each_byte(bytes.unshared, except.unshared, unshared_bytes, take);
  if (failed == 0) return;
  unlock(bytes, except);
  throw Error::system_error(failed, fmt::format("Failed to lock byte {}", failed_byte));
}

void FileLocks::unlock(Bytes bytes, Bytes except) noexcept {
  // Unlocking a byte that is not locked is fine, and nothing can be done where it fails.
  const auto drop = [this](off_t byte) { (void)set_lock(fd_, byte, F_UNLCK); };
  for_each_byte(bytes.used, except.used, used_bytes, drop);
  for_each_byte(bytes.unshared, except.unshared, unshared_bytes, drop);
}

void FileLocks::check(Bytes wanted) const {
  const auto refuse = [this](std::string_view what, std::string_view name) {
    throw Error(EAGAIN, fmt::format("Failed to get {}\"{}\" lock", what, name))
        .with_hint(fmt::format("Is another process using the image [{}]?", path_));
  };
  for (const NamedPermission& entry : permissions) {
    if (wanted.used.has(entry.permission) && is_held_elsewhere(fd_, unshared_bytes + entry.bit)) {
      refuse("", entry.name);
    }
  }
  for (const NamedPermission& entry : permissions) {
    if (wanted.unshared.has(entry.permission) && is_held_elsewhere(fd_, used_bytes + entry.bit)) {
      refuse("shared ", entry.name);
    }
  }
}

void FileLocks::apply(Permissions wanted) {
  const Bytes next = {wanted.uses, Permissions::all().without(wanted.shares)};
  // Take first, ask then: of two openers at the same time at least one sees the other.
  lock(next, held_);
  try {
    check(next);
  } catch (...) {
    unlock(next, held_);
    throw;
  }
  unlock(held_, next);
  held_ = next;
}

void FileLocks::move_to(int fd) {
  const int old = std::exchange(fd_, fd);
  try {
    lock(held_, {});
  } catch (...) {
    fd_ = old;
    throw;
  }
}

}  // namespace vise
