// Reference counts of host clusters: the refcount table and its blocks.
// Increments are made in memory at once and reach the disk before the L2 entries that need them;
// decrements are made only after the pointer's removal is stable (commit.cc, space.cc).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "format/qcow2/cluster_counts.h"
#include "format/qcow2/header.h"
#include "format/qcow2/overlap.h"
#include "format/qcow2/table_cache.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

class Refcounts {
 public:
  /// `header` outlives this object and is updated when the refcount table moves. `stopped` becomes
  /// true if it is not known which table the header on the disk names: nothing can be written then.
  Refcounts(Header& header, Child& file, std::uint64_t cache_size, OverlapGuard& guard,
            bool& stopped);

  /// Reads and checks the refcount table.
  Task<void> load();

  /// For a header that names other refcount structures from now on. Nothing may be dirty.
  Task<void> reload();
  /// Offsets of the refcount blocks, 0 where there is none.
  const std::vector<std::uint64_t>& table() const { return table_; }

  /// The count of the host cluster with that index (0 where there is no refcount block).
  Task<std::uint64_t> get(std::uint64_t cluster);

  /// How many of the first `clusters` are in use; stops counting at `enough`.
  Task<std::uint64_t> count_used(std::uint64_t clusters, std::uint64_t enough);

  /// Adds 1. Throws Error(EFBIG), with nothing changed, if the count is at its maximum.
  Task<void> increase(std::uint64_t cluster);
  /// Adds `references` to the count of a cluster that must be in use: false, with nothing changed,
  /// if it is 0 or would exceed its maximum or `most`.
  Task<bool> try_increase(std::uint64_t cluster, std::uint64_t references = 1,
                          std::uint64_t most = UINT64_MAX);

  /// Subtracts 1 and returns the new count; nothing if it was 0 already (a corrupt image, where
  /// leaking is the safe thing).
  Task<std::optional<std::uint64_t>> decrease(std::uint64_t cluster);

  /// Many at once, `references[i]` times for cluster `first` + i. Raising: to be checked first,
  /// with nothing else under way until raise(). Throws Error(EFBIG) if a count would exceed its
  /// maximum, EIO if one is 0, which says "free" of what is in use.
  Task<void> check_raise(std::uint64_t first, std::span<const std::uint32_t> references);
  Task<void> raise(std::uint64_t first, std::span<const std::uint32_t> references);
  /// Adds the clusters whose counts became 0 to `freed`. Counts that are too low stay as they are.
  Task<void> lower(std::uint64_t first, std::span<const std::uint32_t> references,
                   std::vector<std::uint64_t>& freed);

  /// Takes up to `most` clusters (at least one) with count 0, contiguous, at or after the scan
  /// position, and sets their counts to 1. Returns the first and how many.
  struct Run {
    std::uint64_t first;
    std::uint64_t count;
  };
  Task<Run> take_free(std::uint64_t most);
  /// The first of `count` clusters in a row with count 0, all in [first, end); nothing if there are
  /// none.
  Task<std::optional<std::uint64_t>> find_free(std::uint64_t first, std::uint64_t end,
                                               std::uint64_t count);
  /// Like take_free(), from exactly `first` on; 0 if that one is not free. Leaves the scan
  /// position.
  Task<std::uint64_t> take_run(std::uint64_t first, std::uint64_t most);

  /// Takes `count` clusters in a row behind a new, longer table, which comes with the blocks that
  /// count them: a block that is added alone is the first cluster that it counts, so take_free()
  /// and take_run() never find more than longest_run() in a row there. Fewer if somebody else has
  /// taken the next one.
  Task<Run> take_behind_new_table(std::uint64_t count);
  std::uint64_t longest_run() const { return entries_per_block() - 1; }

  /// The cluster where take_free() goes on searching.
  std::uint64_t scan_position() const { return scan_; }
  /// It goes on from there if it is further.
  void rewind_scan(std::uint64_t cluster) {
    scan_ = std::max<std::uint64_t>(1, std::min(scan_, cluster));
  }

  /// Copies the counts of clusters below counts.size().
  Task<void> copy_counts(ClusterCounts& counts);

  // For an image that shrinks; drained, with nothing dirty before and, but for move_block(), after.
  /// Takes a block that counts nothing but perhaps itself out of the table. False, with nothing
  /// changed, if it counts more.
  Task<bool> drop_block(std::uint64_t index);
  /// Copies a block to a cluster that counts as used on disk; write_blocks() and hook_blocks() make
  /// that the block. The old one is the caller's to free then.
  Task<void> move_block(std::uint64_t index, HostOffset to);
  /// Copies the table to `to`, which counts as used on disk, and has the header name that. The old
  /// one is the caller's to free.
  Task<void> move_table(HostOffset to);

  /// Commit, first part: makes new refcount blocks stable and then known to the table on disk (not
  /// yet stable). Returns whether anything was written.
  struct NewBlock {
    std::uint64_t index;  // in the table
    HostOffset offset;
  };
  std::vector<NewBlock> unhooked_blocks() const { return unhooked_; }
  Task<void> write_blocks(std::vector<NewBlock> blocks);
  Task<void> hook_blocks(std::vector<NewBlock> blocks);
  /// Writes all dirty counts.
  Task<void> write_dirty();
  bool is_dirty() const { return cache_.dirty_bytes() > 0 || !unhooked_.empty(); }
  std::uint64_t dirty_bytes() const { return cache_.dirty_bytes(); }

  /// Clusters of an old refcount table, no longer referenced on disk; the caller frees them.
  bool has_abandoned() const { return !abandoned_.empty(); }
  std::vector<HostRange> take_abandoned() { return std::exchange(abandoned_, {}); }

  std::uint64_t max_count() const { return header_.refcount_max(); }
  /// True if `range` touches the refcount table or a refcount block.
  bool overlaps(HostRange range) const;
  TableCache& cache() { return cache_; }

 private:
  std::uint64_t entries_per_block() const { return header_.refcount_block_entries(); }
  HostOffset block_of(std::uint64_t cluster) const;
  HostOffset required_block_of(std::uint64_t cluster) const;
  HostOffset slice_of(HostOffset block, std::uint64_t cluster, std::uint64_t* index) const;
  std::uint64_t load_count(const std::byte* slice, std::uint64_t index) const;
  void store_count(std::byte* slice, std::uint64_t index, std::uint64_t count) const;
  std::uint64_t take_zeroes(TableCache::Ref& slice, std::uint64_t index, std::uint64_t most);
  template <class F>
  Task<void> for_each_count(std::uint64_t first, std::span<const std::uint32_t> references,
                            F change);
  void guard_blocks();
  Task<void> add_block(std::uint64_t cluster);
  struct GrownTable {
    HostOffset offset;
    std::uint32_t clusters = 0;    // of the table alone
    Buffer image;                  // the table and, behind it, the blocks
    std::vector<NewBlock> blocks;  // those in `image`
  };
  Task<void> grow_table(std::uint64_t cluster);
  /// For a table that has room for `cluster`, and for `behind` clusters behind itself and its
  /// blocks, which are counted already.
  GrownTable plan_growth(std::uint64_t cluster, std::uint64_t behind) const;
  Task<void> install(const GrownTable& plan);
  Task<void> switch_table(HostOffset offset, std::uint32_t clusters);

  Header& header_;
  Child& file_;
  OverlapGuard& guard_;
  bool& stopped_;
  TableCache cache_;
  std::vector<std::uint64_t> table_;  // offsets of refcount blocks, 0 = none
  std::vector<NewBlock> unhooked_;    // blocks that the table on disk does not name yet
  std::vector<HostRange> abandoned_;
  AsyncMutex growth_;       // see grow_table()
  std::uint64_t scan_ = 1;  // never the header's cluster, whatever its count says
};

}  // namespace vise::qcow2
