// Moving the tables of an image in front of a boundary, so that the file can end there: L2 tables,
// refcount blocks and table, the L1 table, dirty bitmaps. Everything here runs drained. What only
// internal snapshots refer to stays where it is.
#include <algorithm>
#include <vector>

#include "format/qcow2/bitmap_data.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

Task<void> Qcow2::move_tables() {
  if (!move_plan_ || move_plan_->boundary() == UINT64_MAX) co_return;
  const std::uint64_t boundary = move_plan_->boundary();
  co_await begin_operation();
  co_await move_l2_tables(boundary);
  co_await move_bitmaps(boundary);
  co_await begin_operation();
  co_await move_l1_table(boundary);
  co_await begin_operation();
  co_await move_refcount_blocks(boundary);
  co_await move_refcount_table(boundary);
  co_await begin_operation();
}

Task<void> Qcow2::move_l2_tables(std::uint64_t boundary) {
  for (std::uint64_t i = 0; i < mapping_.l1().size(); ++i) {
    const std::uint64_t entry = mapping_.l1()[i];
    const std::uint64_t cluster = (entry & entry_offset_mask) >> geometry_.cluster_bits;
    if ((entry & entry_copied) == 0 || cluster < boundary) continue;
    const bool moved = co_await mapping_.move_table(i);
    if (!moved) co_return;
    co_await commit_if_due();
  }
}

// Exactly `count` clusters, one behind the other and all before the boundary; empty if there are no
// such ones.
Task<HostRange> Qcow2::take_run_below(std::uint64_t boundary, std::uint64_t count) {
  if (count == 1) {
    const HostRange space = co_await space_.allocate_clusters(1);
    if (space.start.bytes() >> geometry_.cluster_bits < boundary) co_return space;
    space_.free_unlinked(space);
    co_return HostRange{HostOffset(0), 0};
  }
  for (std::uint64_t first = 1; first + count <= boundary;) {
    const std::uint64_t free = co_await free_run(first, first + count);
    if (free < count) {
      first += free + 1;
      continue;
    }
    const std::uint64_t taken = co_await refcounts_.take_run(first, count);
    const HostRange space{HostOffset(first << geometry_.cluster_bits),
                          taken << geometry_.cluster_bits};
    if (taken == count) {
      if (const auto hit = guard_.find(space)) co_await refuse_write(*hit, space);
      co_return space;
    }
    // The counts of the rest are in another slice, which take_run() does not look at.
    if (taken > 0) space_.free_unlinked(space);
    first += std::max<std::uint64_t>(taken, 1);
  }
  co_return HostRange{HostOffset(0), 0};
}

Task<void> Qcow2::move_l1_table(std::uint64_t boundary) {
  const HostRange table = header_.l1_table();
  if (table.empty() || (table.end() - 1).bytes() >> geometry_.cluster_bits < boundary) co_return;
  const HostRange space =
      co_await take_run_below(boundary, divide_up(table.length, geometry_.cluster_size));
  if (space.empty()) co_return;
  co_await switch_l1(header_.l1_entries, space);
}

Task<void> Qcow2::move_refcount_blocks(std::uint64_t boundary) {
  const std::uint64_t per_block = header_.refcount_block_entries();
  for (std::uint64_t i = refcounts_.table().size(); i-- > 0;) {
    const HostOffset old(refcounts_.table()[i]);
    const std::uint64_t cluster = old.bytes() >> geometry_.cluster_bits;
    if (old.bytes() == 0 || cluster < boundary) continue;
    const HostRange range{old, geometry_.cluster_size};
    const bool dropped = co_await refcounts_.drop_block(i);
    if (dropped) {
      // One that counted itself has gone with its count.
      if (cluster / per_block != i) space_.free_unlinked(range);
      co_await begin_operation();
      continue;
    }
    const HostRange space = co_await take_run_below(boundary, 1);
    if (space.empty()) co_return;
    co_await begin_operation();  // the count of the new place is stable
    co_await refcounts_.move_block(i, space.start);
    co_await commit_counts();
    space_.free_unlinked(range);
    co_await begin_operation();
  }
}

Task<void> Qcow2::move_refcount_table(std::uint64_t boundary) {
  const HostRange table = header_.refcount_table();
  if ((table.end() - 1).bytes() >> geometry_.cluster_bits < boundary) co_return;
  const HostRange space = co_await take_run_below(boundary, header_.refcount_table_clusters);
  if (space.empty()) co_return;
  co_await begin_operation();
  co_await refcounts_.move_table(space.start);
  space_.free_unlinked(table);
}

// Bitmaps are stored anew, as on closing, and claimed again.
Task<void> Qcow2::move_bitmaps(std::uint64_t boundary) {
  if (!header_.bitmaps) co_return;
  const auto is_behind = [&](HostRange range) {
    return !range.empty() && (range.end() - 1).bytes() >> geometry_.cluster_bits >= boundary;
  };
  bool any = is_behind(header_.bitmaps->directory);
  for (StoredBitmap& stored : stored_bitmaps_) {
    const std::vector<HostRange> clusters = co_await bitmap_clusters(*file_, header_, stored.entry);
    if (!std::ranges::any_of(clusters, is_behind)) continue;
    stored.generation = UINT64_MAX;  // none that a bitmap ever has
    any = true;
  }
  if (!any) co_return;
  co_await begin_operation();
  co_await store_bitmaps();
  co_await settle();
  co_await claim_bitmaps();
}

}  // namespace vise::qcow2
