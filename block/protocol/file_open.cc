// Opening a file: what it is, how it must be accessed, whether it may be written.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "protocol/file.h"
#include "protocol/protocols.h"
#include "util/driver_options.h"
#include "util/io_engine.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

// What O_DIRECT never needs more of.
constexpr std::uint32_t safe_alignment = 4096;

std::string could_not_open(const std::string& path) {
  return fmt::format("Could not open '{}'", path);
}

bool is_power_of_two(std::uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

// Reads with smaller and smaller alignments until the kernel refuses one.
std::uint32_t probe_request_alignment(int fd) {
  Buffer buffer(safe_alignment);
  for (std::uint32_t alignment = 512; alignment < safe_alignment; alignment *= 2) {
    const ssize_t length = pread(fd, buffer.data(), alignment, 0);
    // At the end of an empty file any length is fine, which tells nothing.
    if (length > 0 || (length < 0 && errno != EINVAL)) return alignment;
  }
  return safe_alignment;
}

}  // namespace

// `flags`: O_RDONLY or O_RDWR, and O_DIRECT.
FileDescriptor FileDriver::open_descriptor(int flags) const {
  flags |= O_CLOEXEC | O_NOCTTY;
  // O_NONBLOCK so that the name of a FIFO or a drive without a disk is an error and not a wait.
  FileDescriptor fd(::open(options_.path.c_str(), flags | O_NONBLOCK));
  if (!fd.valid()) {
    const int code = errno;
    auto error = Error::system_error(code, could_not_open(options_.path));
    if (code == EINVAL && (flags & O_DIRECT) != 0) {
      error.with_hint("The file system may not support O_DIRECT (cache.direct)");
    }
    throw error;
  }
  if (fcntl(fd.get(), F_SETFL, flags) < 0) {
    throw Error::system_error(errno, could_not_open(options_.path));
  }
  return fd;
}

// A second descriptor of the file that is open; the name must still mean it.
FileDescriptor FileDriver::open_again(int flags) const {
  struct stat before = {};
  struct stat after = {};
  FileDescriptor fd = open_descriptor(flags);
  if (fstat(fd_.get(), &before) < 0 || fstat(fd.get(), &after) < 0 ||
      before.st_dev != after.st_dev || before.st_ino != after.st_ino) {
    throw Error(ESTALE,
                fmt::format("{}: another file has that name now", could_not_open(options_.path)));
  }
  return fd;
}

std::unique_ptr<FileDriver> FileDriver::open(FileOptions options, IoEngine& engine, Node* node,
                                             IoEngine* buffered_writes) {
  IoEngine& writes = buffered_writes != nullptr ? *buffered_writes : engine;
  std::unique_ptr<FileDriver> driver(new FileDriver(std::move(options), engine, writes, node));
  FileOptions& settings = driver->options_;
  const int direct = settings.direct ? O_DIRECT : 0;
  try {
    driver->fd_ = driver->open_descriptor((settings.read_only ? O_RDONLY : O_RDWR) | direct);
  } catch (const Error& error) {
    const bool not_permitted =
        error.code() == EACCES || error.code() == EPERM || error.code() == EROFS;
    if (settings.read_only || !settings.auto_read_only || !not_permitted) throw;
    settings.read_only = true;
    driver->fd_ = driver->open_descriptor(O_RDONLY | direct);
  }
  driver->examine();
  const int fd = driver->fd_.get();
  if (settings.locking != FileOptions::Locking::off) {
    if (FileLocks::supported(fd)) {
      driver->locks_.emplace(fd, settings.path);
    } else if (settings.locking == FileOptions::Locking::on) {
      throw Error(ENOTSUP, fmt::format("{}: locks are not supported for this file (locking=on)",
                                       could_not_open(settings.path)));
    }
  }
  return driver;
}

// Finds out kind, size and alignment of the file that was opened.
void FileDriver::examine() {
  struct stat status = {};
  if (fstat(fd_.get(), &status) < 0) {
    throw Error::system_error(errno, could_not_open(options_.path));
  }
  const bool is_device = S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode);
  if (options_.device && !is_device) {
    throw Error(EINVAL, fmt::format("{}: 'host_device' needs a block or character device",
                                    could_not_open(options_.path)));
  }
  if (S_ISDIR(status.st_mode)) {
    throw Error::system_error(EISDIR, could_not_open(options_.path));
  }
  if (!options_.device && !S_ISREG(status.st_mode)) {
    throw Error(EINVAL,
                fmt::format("{}: 'file' needs a regular file", could_not_open(options_.path)));
  }
  if (S_ISBLK(status.st_mode)) kind_ = Kind::block;
  if (S_ISCHR(status.st_mode)) kind_ = Kind::character;
  update_size();
  alignment_ = alignment_for(fd_.get(), options_.direct);
}

FileDriver::Alignment FileDriver::alignment_for(int fd, bool direct) const {
  if (direct) return direct_alignment(fd);
  // The page cache of a device takes any offset, but its end is a multiple of a sector.
  return {.request = kind_ == Kind::block ? 512u : 1u, .memory = 1};
}

void FileDriver::update_size() {
  if (kind_ == Kind::regular) {
    struct stat status = {};
    if (fstat(fd_.get(), &status) == 0) size_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  const off_t end = lseek(fd_.get(), 0, SEEK_END);
  if (end >= 0) size_ = static_cast<std::uint64_t>(end);
}

FileDriver::Alignment FileDriver::direct_alignment(int fd) const {
  struct statx status = {};
  const int result = statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status);
  if (result == 0 && (status.stx_mask & STATX_DIOALIGN) != 0 && status.stx_dio_offset_align != 0) {
    const Alignment alignment = {status.stx_dio_offset_align, status.stx_dio_mem_align};
    if (is_power_of_two(alignment.request) && is_power_of_two(alignment.memory) &&
        alignment.memory <= Buffer::alignment) {
      return alignment;
    }
  }
  int sector = 0;
  if (kind_ == Kind::block && ioctl(fd, BLKSSZGET, &sector) == 0 &&
      is_power_of_two(static_cast<std::uint32_t>(sector))) {
    return {static_cast<std::uint32_t>(sector), safe_alignment};
  }
  return {probe_request_alignment(fd), safe_alignment};
}

Task<void> FileDriver::reopen(bool read_only) {
  if (read_only == options_.read_only) co_return;
  FileDescriptor fd =
      open_again((read_only ? O_RDONLY : O_RDWR) | (options_.direct ? O_DIRECT : 0));
  if (locks_) locks_->move_to(fd.get());
  fd_ = std::move(fd);
  options_.read_only = read_only;
}

Task<std::function<void()>> FileDriver::prepare_reopen(OpenContext& context) {
  const NodeOptions wanted = context.node_options();
  const Value* aio = context.options().find("aio");
  if (aio != nullptr && *aio == Value("native") && !wanted.cache_direct) {
    throw Error(EINVAL, "aio=native needs cache.direct=on");
  }
  if (wanted.cache_direct == options_.direct) {
    co_return [this, wanted] { options_.no_flush = wanted.cache_no_flush; };
  }
  // What was written the other way is written out: nobody could tell the new descriptor's owner of
  // a failure.
  if (!options_.read_only) co_await flush();
  const int access = wanted.read_only ? O_RDONLY : O_RDWR;
  const auto fd =
      std::make_shared<FileDescriptor>(open_again(access | (wanted.cache_direct ? O_DIRECT : 0)));
  const Alignment alignment = alignment_for(fd->get(), wanted.cache_direct);
  co_return [this, wanted, fd, alignment] { take_descriptor(std::move(*fd), wanted, alignment); };
}

void FileDriver::take_descriptor(FileDescriptor fd, const NodeOptions& wanted,
                                 Alignment alignment) noexcept {
  options_.no_flush = wanted.cache_no_flush;
  try {
    if (locks_) locks_->move_to(fd.get());
  } catch (const Error& error) {
    // The locks are worth more: it stays as it is.
    if (node_ != nullptr) node_->graph().on_warning(error.message());
    return;
  }
  fd_ = std::move(fd);
  options_.direct = wanted.cache_direct;
  alignment_ = alignment;
}

namespace {

IoEngine& choose_engine(OpenContext& context, std::optional<qapi::BlockdevAioOptions> aio) {
  if (aio == qapi::BlockdevAioOptions::threads) return context.context().io_threads();
  if (aio == qapi::BlockdevAioOptions::native && !context.node_options().cache_direct) {
    throw Error(EINVAL, "aio=native needs cache.direct=on");
  }
  return context.context().io();
}

Task<std::unique_ptr<Driver>> open_path(OpenContext& context, bool device) {
  const NodeOptions& node_options = context.node_options();
  FileOptions options;
  options.device = device;
  options.read_only = node_options.read_only;
  options.auto_read_only = node_options.auto_read_only;
  options.direct = node_options.cache_direct;
  options.no_flush = node_options.cache_no_flush;

  auto given = read_options<qapi::BlockdevOptionsFile>(context);
  IoEngine& engine = choose_engine(context, given.aio);
  options.path = std::move(given.filename);
  if (options.path.empty()) {
    throw Error(EINVAL, fmt::format("Parameter '{}filename' is empty", context.option_path()));
  }
  if (given.locking == qapi::OnOffAuto::on) options.locking = FileOptions::Locking::on;
  if (given.locking == qapi::OnOffAuto::off || node_options.force_share) {
    options.locking = FileOptions::Locking::off;
  }

  // Unless asked for, io_uring does not get the buffered writes: the kernel does them in a worker
  // thread of its own, at a fraction of our threads' speed.
  IoEngine& buffered_writes = given.aio ? engine : context.context().io_threads();
  auto driver = FileDriver::open(std::move(options), engine, &context.node(), &buffered_writes);
  if (driver->read_only() && !node_options.read_only) context.became_read_only();
  co_return driver;
}

Task<std::unique_ptr<Driver>> open_file(OpenContext& context) { return open_path(context, false); }
Task<std::unique_ptr<Driver>> open_device(OpenContext& context) { return open_path(context, true); }

constexpr CreateOption create_options[] = {
    {"nocow", CreateOption::Type::boolean, "Turn off copy-on-write (only on btrfs)"},
    {"preallocation", CreateOption::Type::string, "Preallocation mode (off, falloc, full)"},
    {"extent_size_hint", CreateOption::Type::size,
     "Extent size hint for the image file, 0 to disable"},
};

}  // namespace

const DriverType file_driver = {.name = "file",
                                .kind = DriverKind::protocol,
                                .open = open_file,
                                .create = create_file,
                                .create_options = create_options};

const DriverType host_device_driver = {.name = "host_device",
                                       .kind = DriverKind::protocol,
                                       .open = open_device,
                                       .create = create_on_device};

std::string_view protocol_for_path(const std::string& path) {
  struct stat status = {};
  const bool device =
      stat(path.c_str(), &status) == 0 && (S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode));
  return device ? host_device_driver.name : file_driver.name;
}

}  // namespace vise
