// Requests to a file: reading, writing, mapping, flushing.
#include "protocol/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vise/error.h"

namespace vise {

FileDriver::FileDriver(FileOptions options, IoEngine& engine, IoEngine& buffered_writes, Node* node)
    : options_(std::move(options)),
      engine_(engine),
      buffered_writes_(buffered_writes),
      node_(node) {}

Limits FileDriver::limits() const {
  return {.request_alignment = alignment_.request,
          .memory_alignment = alignment_.memory,
          .can_zero = kind_ != Kind::character && (can_zero_range_ || can_punch_hole_),
          .can_discard = kind_ != Kind::character && can_punch_hole_,
          .growable = kind_ == Kind::regular};
}

Task<Extent> FileDriver::map(GuestRange range, MapMode mode) {
  Extent extent{.kind = Extent::Kind::data, .length = range.length};
  if (mode == MapMode::precise && kind_ == Kind::regular && range.start.bytes() < size_) {
    const auto stretch = extents_.find(fd_.get(), range.start.bytes(), size_);
    if (!stretch.data) extent.kind = Extent::Kind::zero;
    extent.length = std::min(stretch.length, range.length);
  }
  extent.host = HostOffset(range.start.bytes());  // a hole has its place too
  extent.node = node_;
  co_return extent;
}

Task<void> FileDriver::read(GuestOffset offset, IoVec data) {
  const std::uint64_t length = co_await engine_.read(fd_.get(), data, offset.bytes(), medium());
  // The rest of the last aligned block, and what another process may have cut off.
  if (length < data.size()) data.slice(length).fill(std::byte{0});
}

Task<void> FileDriver::write(GuestOffset offset, ConstIoVec data, WriteFlags) {
  const GuestRange range{offset, data.size()};
  // A write that failed may be partly done, and have made the file longer.
  struct Finish {
    FileDriver& driver;
    GuestRange range;
    bool failed = true;
    ~Finish() {
      if (failed) {
        driver.update_size();
      } else {
        driver.size_ = std::max(driver.size_, range.end().bytes());
      }
    }
  } finish{*this, range};
  co_await write_engine().write(fd_.get(), data, offset.bytes(), IoEngine::Durability::cached,
                                medium());
  finish.failed = false;
}

Task<void> FileDriver::flush() {
  // Character devices keep nothing back, and refuse to be asked.
  if (options_.no_flush || kind_ == Kind::character) co_return;
  // The kernel reports a failed write-back once and then forgets the pages: a later success would
  // say nothing about what was written before.
  if (!sync_failed_) {
    try {
      co_await engine_.sync(fd_.get());
    } catch (...) {
      sync_failed_ = true;
      throw;
    }
  }
  if (sync_failed_)
    throw Error::system_error(EIO);  // also when it failed for another one meanwhile
}

Task<DriverInfo> FileDriver::info() {
  DriverInfo info;
  struct stat status{};
  if (kind_ == Kind::regular && ::fstat(fd_.get(), &status) == 0) {
    info.allocated_size = static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  info.dirty = false;
  co_return info;
}

Task<void> FileDriver::apply_permissions(Permissions cumulative) {
  if (locks_) locks_->apply(cumulative);
  co_return;
}

Task<void> FileDriver::close() {
  locks_.reset();
  fd_ = FileDescriptor();
  co_return;
}

}  // namespace vise
