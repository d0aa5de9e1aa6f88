// Making a new image file.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string_view>

#include "protocol/file.h"
#include "util/io_engine.h"
#include "util/value_reader.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

// As QEMU's: keeps sparse images on XFS from falling to pieces.
constexpr std::uint64_t default_extent_size_hint = 1 << 20;

struct FileCreateOptions {
  Preallocation preallocation = Preallocation::off;
  bool nocow = false;
  std::uint64_t extent_size_hint = default_extent_size_hint;  // bytes, 0: none
};

FileCreateOptions read_options(const Value::Dict& options) {
  static constexpr std::array<std::string_view, 3> preallocations = {"off", "falloc", "full"};
  static constexpr std::array modes = {Preallocation::off, Preallocation::falloc,
                                       Preallocation::full};
  const Value all(options);
  const ValueReader root(all, ValueInput::options);
  DictReader reader(root);
  FileCreateOptions result;
  if (const Value* value = reader.find("preallocation")) {
    result.preallocation = modes[root.member("preallocation", *value).choice(preallocations)];
  }
  if (const Value* value = reader.find("nocow")) {
    result.nocow = root.member("nocow", *value).boolean();
  }
  if (const Value* value = reader.find("extent_size_hint")) {
    const ValueReader hint = root.member("extent_size_hint", *value);
    result.extent_size_hint = hint.size();
    if (result.extent_size_hint > UINT32_MAX) hint.fail_range(0, UINT32_MAX);
  }
  reader.finish();
  return result;
}

// Both are wishes: file systems that do not know them make the file just as well.
void set_attributes(int fd, const FileCreateOptions& options) {
  if (options.nocow) {
    int flags = 0;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
      flags |= FS_NOCOW_FL;
      (void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
  }
  if (options.extent_size_hint > 0) {
    fsxattr attributes = {};
    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0 && attributes.fsx_extsize == 0) {
      attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
      attributes.fsx_extsize = static_cast<std::uint32_t>(options.extent_size_hint);
      (void)ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
  }
}

Task<void> fill_file(IoEngine& engine, int fd, std::uint64_t size, FileCreateOptions options) {
  // From here on what was there is gone, so the locks come before.
  const std::int64_t cut =
      co_await engine.call([fd]() -> std::int64_t { return ftruncate(fd, 0) < 0 ? -errno : 0; });
  if (cut < 0) throw Error::system_error(static_cast<int>(-cut));
  set_attributes(fd, options);
  const int code = co_await extend_file(engine, fd, 0, size, options.preallocation);
  if (code != 0) {
    (void)ftruncate(fd, 0);
    throw Error::system_error(code);
  }
}

FileDescriptor open_new(const std::string& path, int flags) {
  FileDescriptor fd(::open(path.c_str(), flags | O_RDWR | O_CLOEXEC | O_NOCTTY, 0644));
  if (!fd.valid()) throw Error::system_error(errno);
  return fd;
}

Task<void> create_regular(CreateRequest& request) {
  const FileCreateOptions options = read_options(request.options);
  if (request.size > INT64_MAX) throw Error::system_error(EFBIG);
  const FileDescriptor fd = open_new(request.filename, O_CREAT);
  struct stat status = {};
  if (fstat(fd.get(), &status) < 0) throw Error::system_error(errno);
  if (!S_ISREG(status.st_mode)) throw Error(EINVAL, "not a regular file");
  if (FileLocks::supported(fd.get())) {
    FileLocks locks(fd.get(), request.filename);
    locks.apply({.uses = PermissionSet(Permission::write) | Permission::resize,
                 .shares = Permissions::all().without(Permission::resize)});
  }
  IoEngine& engine = request.graph.context().io();
  co_await fill_file(engine, fd.get(), request.size, options);
}

Task<void> create_in_device(CreateRequest& request) {
  const FileDescriptor fd = open_new(request.filename, 0);
  const off_t end = lseek(fd.get(), 0, SEEK_END);
  if (end < 0) throw Error::system_error(errno);
  if (static_cast<std::uint64_t>(end) < request.size) {
    throw Error(ENOSPC, fmt::format("the device has {} bytes, {} are needed", end, request.size));
  }
  // What was there shall not be taken for the new image's format.
  const Buffer zeroes =
      Buffer::zeroed(std::min<std::uint64_t>(static_cast<std::uint64_t>(end), 4096));
  IoEngine& engine = request.graph.context().io();
  co_await engine.write(fd.get(), zeroes.span(), 0);
}

}  // namespace

Task<void> create_file(CreateRequest& request) {
  return create_regular(request).context(fmt::format("Could not create '{}'", request.filename));
}

Task<void> create_on_device(CreateRequest& request) {
  return create_in_device(request).context(fmt::format("Could not use '{}'", request.filename));
}

}  // namespace vise
