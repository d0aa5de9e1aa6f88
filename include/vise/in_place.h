// Compressing an image where it lies: what a driver has to offer for it. The engine that strings
// the steps together is block/copy/compress_in_place.h.
#pragma once

#include <cstdint>

#include "vise/task.h"
#include "vise/types.h"

namespace vise {

/// A driver that can compress what its image holds in place, move it together, and give the space
/// back to the host. What is not called drained may be called while the node is in use. Stopping at
/// any moment, by a power failure or an error, leaves the content as it was and
/// the image consistent, at worst with leaked clusters. The node is writable.
class CompressibleInPlace {
 public:
  virtual ~CompressibleInPlace() = default;

  /// Called drained, first of all. Throws Error(ENOTSUP) if the image cannot hold compressed
  /// clusters side by side.
  virtual Task<void> begin_compressing() = 0;
  /// Called next: looks for what is wrong with the metadata.
  virtual Task<void> check_metadata() = 0;
  /// Called drained: what was found counts. Throws Error(EIO) if the metadata is corrupt; gives
  /// back what an interrupted run has leaked.
  virtual Task<void> end_check() = 0;

  /// The first stretch of whole clusters in `range` that is worth compressing, of about `most`
  /// bytes at most. Empty, at the end of `range`, if there is none.
  virtual Task<GuestRange> find_uncompressed(GuestRange range, std::uint64_t most) = 0;
  /// Replaces uncompressed clusters of a stretch that was found by compressed ones where these are
  /// smaller; whether it still holds any is looked up again. Nobody else may have requests for the
  /// stretch in flight. `level` as in WriteFlags. Returns the bytes that are compressed now.
  virtual Task<std::uint64_t> compress_range(GuestRange range, int level) = 0;

  /// Called drained, again and again: compresses a part of what snapshots hold, alone or together
  /// with the disk, from step.next on, which is 0 at first and has no unit. Where it throws,
  /// step.next has moved on behind what cannot be compressed.
  struct SnapshotStep {
    std::uint64_t next = 0;  // where to go on
    std::uint64_t end = 0;   // nothing is left once `next` has got here
    std::uint64_t read = 0;  // bytes, this time
    std::uint64_t done = 0;  // bytes of these that are compressed, or have been moved
  };
  virtual Task<void> compress_snapshots(SnapshotStep& step, int level) = 0;

  /// Finds out whether the file could be shorter if clusters were moved, and which; to be repeated
  /// when they have been moved. False: nothing to move, or the last round did not help.
  virtual Task<bool> plan_moves() = 0;
  /// Like find_uncompressed(), for clusters that plan_moves() has chosen.
  virtual Task<GuestRange> find_movable(GuestRange range, std::uint64_t most) = 0;
  /// Moves them to places further to the front, or closer together. Like compress_range() it has
  /// the stretch to itself. Returns the host bytes moved.
  virtual Task<std::uint64_t> move_range(GuestRange range) = 0;
  /// Called drained, again and again like compress_snapshots(): does the same for what snapshots
  /// hold, and for their L2 tables.
  virtual Task<void> move_snapshots(SnapshotStep& step) = 0;
  /// Called drained: does the same for the image's other tables.
  virtual Task<void> move_tables() = 0;
  /// Guest offset where a walk with find_movable() ends; may lie past the end of the disk.
  virtual GuestOffset end_of_moves() const = 0;

  /// Gives back to the host what is free: holes inside the file, and its free end.
  virtual Task<void> release_free_space() = 0;
};

}  // namespace vise
