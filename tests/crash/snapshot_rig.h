// Images with internal snapshots on a crash-disk: made, read with all their snapshots, checked, and
// written to.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "crash/disk.h"
#include "crash/image.h"
#include "vise/context.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::crash {

using Bytes = std::vector<std::byte>;

/// The kind of images.
struct Shape {
  const char* name;
  std::uint64_t cluster_size;
  std::uint64_t size;  // bytes of the disk
  Value::Dict create_options;
  std::vector<GuestRange> windows = {};  // where the guest writes and reads; none: everywhere
  std::uint64_t vm_state = 0;            // bytes of it that are looked at as well
  bool compressed_writes = true;         // some of them

  bool is_version2() const { return create_options.find("compat") != nullptr; }
  /// It is named, but not open: zeros must be kept as if something were below.
  bool has_backing() const { return create_options.find("backing_file") != nullptr; }
};

inline void PrintTo(const Shape& shape, std::ostream* out) {  // NOLINT: googletest's name
  *out << shape.name;
}

/// What can be read of an image.
struct ImageContent {
  Bytes disk;
  std::map<std::string, Bytes> snapshots;
  bool operator==(const ImageContent&) const = default;
};

class SnapshotRig {
 public:
  explicit SnapshotRig(const Shape& shape);
  ~SnapshotRig();
  SnapshotRig(const SnapshotRig&) = delete;

  /// An image with two snapshots, "old" and "young", and clusters of every kind, alone and shared.
  enum class Sizes { grow, stay };  // of the disk from one snapshot to the next
  Image prepare(std::uint64_t seed, Sizes sizes);

  ImageContent read(const Image& image);

  /// What check finds but leaks, and but for COPIED flags that are clear where they could be set.
  std::string check(const Image& image);
  /// The latter included.
  std::string check_strictly(const Image& image);

  /// The guest goes on: overwrites a bit of everything.
  Image overwrite(const Image& image, std::uint64_t seed);

  /// Runs `task`, whose nodes have `disk` below them.
  template <class T>
  T run_on(Disk& disk, Task<T> task) {
    disk_type_.disk = &disk;
    return context_.loop().run(std::move(task));
  }

  Task<void> create_image();
  Task<std::unique_ptr<Child>> open(bool writable, OpenPurpose purpose = OpenPurpose::io);
  Task<void> write_some(Child& root, std::mt19937_64& random, unsigned requests);
  static Task<void> add_snapshot(Child& root, std::string name);
  /// Closes `root`, after `failure` if there is one; throws that, or else what closing throws.
  static Task<void> end_session(std::unique_ptr<Child> root, std::exception_ptr failure);

 private:
  std::vector<GuestRange> windows_of(const Child& root) const;
  Task<void> fill_image(std::mt19937_64& random, Sizes sizes);
  Task<Bytes> read_disk(Child& root);
  Task<ImageContent> read_content();
  enum class Copied { exact, may_be_clear };
  Task<std::string> check_image(Copied copied);
  Task<void> overwrite_disk(std::uint64_t seed);

  const Shape shape_;
  Context context_;
  DiskDriverType disk_type_;
  Graph graph_;
  std::uint64_t contents_ = 0;
};

}  // namespace vise::crash
