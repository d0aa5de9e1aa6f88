// Making a new image file.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string_view>

#include "protocol/file.h"
#include "util/io_engine.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/options.h"

namespace vise {

namespace {

// As QEMU's: keeps sparse images on XFS from falling to pieces.
constexpr std::uint64_t default_extent_size_hint = 1 << 20;

struct FileCreateOptions {
  Preallocation preallocation = Preallocation::off;
  bool nocow = false;
  std::uint64_t extent_size_hint = default_extent_size_hint;  // bytes, 0: none
};

bool to_bool(const Value& value) {
  return value.is_bool() ? value.as_bool() : parse_bool(value.as_string());
}

std::uint64_t to_size(const Value& value) {
  return value.is_integer() ? value.as_uint() : parse_size(value.as_string());
}

Preallocation to_preallocation(const Value& value) {
  const std::string_view name = value.as_string();
  if (name == "off") return Preallocation::off;
  if (name == "falloc") return Preallocation::falloc;
  if (name == "full") return Preallocation::full;
  throw Error(EINVAL, fmt::format("'{}' is not one of off, falloc, full", name));
}

FileCreateOptions read_options(const Value::Dict& options) {
  FileCreateOptions result;
  for (const auto& [name, value] : options) {
    const bool is_scalar = value.is_string() || value.is_bool() || value.is_integer();
    try {
      if (!is_scalar) throw Error(EINVAL, "a single value is expected");
      if (name == "preallocation" && value.is_string()) {
        result.preallocation = to_preallocation(value);
      } else if (name == "nocow" && !value.is_integer()) {
        result.nocow = to_bool(value);
      } else if (name == "extent_size_hint" && !value.is_bool()) {
        result.extent_size_hint = to_size(value);
        if (result.extent_size_hint > UINT32_MAX) throw Error(ERANGE, "must be below 4 GiB");
      } else {
        throw Error(EINVAL, "no such option, or not of its type");
      }
    } catch (Error& error) {
      error.add_context(fmt::format("Option '{}'", name));
      throw;
    }
  }
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
