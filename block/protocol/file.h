// The drivers file and host_device: bytes in a file or on a device of this machine.
//   file.cc         requests
//   file_open.cc    opening, reopening, options
//   file_copy.cc    copying from file to file
//   file_zero.cc    zeroing, discarding, changing the size
//   file_create.cc  making a new file
//   file_lock.h     locks against other processes
//   file_extents.h  data and holes
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "protocol/file_extents.h"
#include "protocol/file_lock.h"
#include "util/file_descriptor.h"
#include "util/io_engine.h"
#include "vise/driver.h"

namespace vise {

struct NodeOptions;

struct FileOptions {
  std::string path;
  bool device = false;  // host_device: a block or character device is wanted
  bool read_only = false;
  bool auto_read_only = false;  // open read-only where writing is not permitted
  bool direct = false;          // O_DIRECT
  bool no_flush = false;        // flush() does nothing
  enum class Locking { off, automatic, on };
  Locking locking = Locking::automatic;
};

class FileDriver final : public Driver {
 public:
  /// Opens the file. `engine` does the I/O, or `buffered_writes`, if given, those writes that go to
  /// the page cache; both must outlive the driver. `node` is named in what map() gives, and may be
  /// null. Throws Error that names the file.
  static std::unique_ptr<FileDriver> open(FileOptions options, IoEngine& engine, Node* node,
                                          IoEngine* buffered_writes = nullptr);
  FileDriver(const FileDriver&) = delete;

  bool read_only() const { return options_.read_only; }

  std::uint64_t size() const override { return size_; }
  Limits limits() const override;
  Task<Extent> map(GuestRange range, MapMode mode) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> flush() override;
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override;
  Task<std::uint64_t> copy_out(GuestRange range, CopySink& sink) override;
  Task<bool> copy_in(GuestOffset offset, FileStretch source, WriteFlags flags) override;
  Task<DriverInfo> info() override;
  Task<void> apply_permissions(Permissions cumulative) override;
  Task<void> reopen(bool read_only) override;
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;
  Task<void> close() override;

 private:
  enum class Kind { regular, block, character };
  struct Alignment {
    std::uint32_t request = 1;
    std::uint32_t memory = 1;
  };

  FileDriver(FileOptions options, IoEngine& engine, IoEngine& buffered_writes, Node* node);

  IoEngine& write_engine() const { return options_.direct ? engine_ : buffered_writes_; }
  IoEngine::Medium medium() const {
    return options_.direct ? IoEngine::Medium::device : IoEngine::Medium::page_cache;
  }

  // file_open.cc
  FileDescriptor open_descriptor(int flags) const;
  FileDescriptor open_again(int flags) const;
  void examine();
  void update_size();
  Alignment direct_alignment(int fd) const;
  Alignment alignment_for(int fd, bool direct) const;
  void take_descriptor(FileDescriptor fd, const NodeOptions& wanted, Alignment alignment) noexcept;

  // file_zero.cc
  Task<bool> zero_range(GuestRange range);
  Task<bool> punch_hole(GuestRange range);
  Task<void> extend_over(GuestRange range);
  Task<bool> unmap_to_zero(GuestRange range);
  Task<bool> punch_and_allocate(GuestRange range);
  Task<void> grow(std::uint64_t size, Preallocation preallocation);
  Task<void> set_size(std::uint64_t size);

  FileOptions options_;
  IoEngine& engine_;
  IoEngine& buffered_writes_;  // does those writes that go to the page cache
  Node* node_;
  FileDescriptor fd_;
  std::optional<FileLocks> locks_;  // absent: no locking
  Kind kind_ = Kind::regular;
  std::uint64_t size_ = 0;  // bytes
  Alignment alignment_;
  FileExtents extents_;
  bool sync_failed_ = false;    // for good: what was lost is not known
  bool can_zero_range_ = true;  // until the file system says no
  bool can_punch_hole_ = true;
};

Task<void> create_file(CreateRequest& request);
Task<void> create_on_device(CreateRequest& request);

/// 0 once `fd` has space for [from, to), which lies behind the end of the file, or the errno.
/// off: the file is made longer; falloc: space is reserved; full: zeros are written.
Task<int> extend_file(IoEngine& engine, int fd, std::uint64_t from, std::uint64_t to,
                      Preallocation preallocation);

}  // namespace vise
