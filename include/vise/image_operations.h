// What programs do with images beyond reading and writing them: small interfaces that a driver may
// implement beside Driver (found by dynamic_cast), and what a driver type may offer without an
// open image.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "vise/io_vec.h"
#include "vise/task.h"
#include "vise/value.h"

namespace vise {

class Child;
struct CreateOption;
class Node;

enum class Repair { none, leaks, all };

/// A compressed cluster that does not decode, or whose checksum disagrees.
struct DamagedCluster {
  std::uint64_t guest_offset = 0;   // bytes
  std::uint64_t host_offset = 0;    // bytes
  std::uint64_t stored_length = 0;  // bytes, an upper bound
  bool in_snapshot = false;         // named by snapshots alone
};

struct CheckRequest {
  Repair repair = Repair::none;
  /// Called with one line for people per finding and per repair, without newline. May be empty.
  std::function<void(const std::string&)> on_finding;
  /// Decodes every compressed cluster as well, after a repair. Damage found there is a finding,
  /// but no corruption of the metadata.
  bool data = false;
  std::function<void(const DamagedCluster&)> on_damaged;  // with `data`; may be empty
  std::function<void(double fraction)> on_progress;       // 0 to 1, with `data` of that
};

/// What decoding all compressed clusters has shown. A cluster counts once for each L2 table that
/// names it.
struct DataCheckResult {
  std::uint64_t clusters = 0;       // decoded or damaged
  std::uint64_t with_checksum = 0;  // of these: carry a checksum of their content, right or wrong
  std::uint64_t damaged = 0;        // of these
};

/// Counts of clusters and findings. After a repair, the *_fixed counts are those of the first pass
/// and all others those of a second pass.
struct CheckResult {
  std::uint64_t corruptions = 0;
  std::uint64_t leaks = 0;
  std::uint64_t check_errors = 0;  // parts of the image that could not be checked
  std::uint64_t corruptions_fixed = 0;
  std::uint64_t leaks_fixed = 0;
  std::uint64_t image_end_offset = 0;  // host bytes; 0: not known
  std::uint64_t total_clusters = 0;
  std::uint64_t allocated_clusters = 0;
  std::uint64_t fragmented_clusters = 0;
  std::uint64_t compressed_clusters = 0;
  std::optional<DataCheckResult> data;  // if asked for
};

/// A driver whose metadata can be checked and repaired. The image is opened with
/// NodeOptions::purpose = OpenPurpose::check.
class Checkable {
 public:
  virtual ~Checkable() = default;
  /// Throws where the check cannot start or breaks off; findings are not errors.
  virtual Task<CheckResult> check(CheckRequest request) = 0;
};

/// Which internal snapshot is meant: everything given must match.
struct SnapshotSelector {
  std::optional<std::string> id;
  std::optional<std::string> name;
  std::optional<std::string> word;  // tried as ID, then as name
};

struct NewSnapshot {
  std::string name;               // at most 65535 bytes; need not be unique
  std::uint32_t seconds = 0;      // since 1970, UTC
  std::uint32_t nanoseconds = 0;  // below 10^9
};

/// A driver that keeps snapshots inside the image; Driver::info() lists them. Everything is called
/// drained and, but for view_snapshot(), on a writable node. Stopping at any moment leaves the disk
/// as it was before or as it is afterwards, all snapshots intact, and at worst leaked clusters or
/// COPIED flags that are clear where they could be set.
class HasSnapshots {
 public:
  virtual ~HasSnapshots() = default;
  virtual Task<void> create_snapshot(NewSnapshot snapshot) = 0;
  /// The disk becomes what it was, its size included. Error(ENOENT) if there is no such snapshot;
  /// so below.
  virtual Task<void> apply_snapshot(SnapshotSelector which) = 0;
  virtual Task<void> delete_snapshot(SnapshotSelector which) = 0;
  /// For read-only nodes: from now on the node shows the disk of the snapshot, at its size.
  virtual Task<void> view_snapshot(SnapshotSelector which) = 0;
};

/// A driver that keeps the state of a virtual machine behind the end of the disk, where snapshots
/// take it along. Called drained. Offsets are bytes from the start of the state, which reads as
/// zeros where nothing was saved. Error(EFBIG) beyond what the format can address.
class HasVmState {
 public:
  virtual ~HasVmState() = default;
  virtual Task<void> load_vm_state(std::uint64_t offset, IoVec data) = 0;
  /// On a writable node.
  virtual Task<void> save_vm_state(std::uint64_t offset, ConstIoVec data) = 0;
};

/// A driver whose image names a backing file. Called drained, on a writable node.
class HasBackingFile {
 public:
  virtual ~HasBackingFile() = default;
  /// Puts another edge (null: none) where the one to the backing image was, and gives that one,
  /// which the caller detaches. What the image says stays as it is.
  virtual std::unique_ptr<Child> exchange_backing(std::unique_ptr<Child> backing) = 0;
  /// Changes what the image says; the node goes on with the backing image it has. Both are stored
  /// as they are; empty: none. Stable when it completes. Error(ENOSPC) if there is no room.
  virtual Task<void> change_backing_file(std::string filename, std::string format) = 0;
  /// Drops everything the image itself holds, so that the backing image shows. For images whose
  /// content the backing image has by now: a power failure may leave any part of it dropped.
  virtual Task<void> make_empty() = 0;
};

/// A driver whose images say so while they are being made (CreateRequest::incomplete).
class Completable {
 public:
  virtual ~Completable() = default;
  /// Nothing more is to come. The mark goes when the image is closed and all that was written is
  /// stable; if that fails, it stays.
  virtual void complete() = 0;
};

struct AmendRequest {
  Value::Dict options;  // -o options by name, values as typed (strings) or JSON
  std::function<void(double fraction)> on_progress;  // 0 to 1; may be empty
};

/// A driver that can change the form of an image in place. Called drained, on a writable node.
class Amendable {
 public:
  virtual ~Amendable() = default;
  virtual std::span<const CreateOption> amend_options() const = 0;
  /// Throws Error(EINVAL / ENOTSUP), with nothing changed, for what cannot be changed.
  virtual Task<void> amend(AmendRequest request) = 0;
};

/// What a new image is to hold; see DriverType::measure.
struct MeasureRequest {
  std::uint64_t size = 0;  // bytes of the new image
  Value::Dict options;     // the -o options by name, values as typed (strings) or JSON
  Node* source = nullptr;  // an open image whose content it takes over; null: empty
};

/// Sizes in bytes of the file(s) of the new image.
struct MeasureResult {
  std::uint64_t required = 0;            // for what is known to be stored at first
  std::uint64_t fully_allocated = 0;     // when every cluster has been written
  std::optional<std::uint64_t> bitmaps;  // to take over the bitmaps of the source
};

}  // namespace vise
