// Moving the tables of an image in front of a boundary, so that the file can end there: L2 tables,
// refcount blocks and table, the L1 table. Everything here runs drained. What snapshots and dirty
// bitmaps refer to is in move_snapshots.cc and move_bitmaps.cc.
#include <algorithm>
#include <vector>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

namespace {
// A table that is longer would need more free space at once than we promise to get along with.
constexpr std::uint64_t longest_table = 32u << 20;  // bytes
}  // namespace

Task<void> Qcow2::move_tables() {
  if (!move_plan_ || move_plan_->boundary() == UINT64_MAX) co_return;
  co_await begin_operation();
  co_await move_l2_tables();
  co_await move_bitmaps();
  co_await begin_operation();
  co_await move_snapshot_tables();
  co_await begin_operation();
  co_await move_refcount_blocks();
  co_await move_l1_table();
  co_await begin_operation();
  co_await move_refcount_table();
  co_await begin_operation();
}

Task<void> Qcow2::move_l2_tables() {
  for (std::uint64_t i = 0; i < mapping_.l1().size(); ++i) {
    const std::uint64_t entry = mapping_.l1()[i];
    const HostRange table{HostOffset(entry & entry_offset_mask), geometry_.cluster_size};
    if ((entry & entry_copied) == 0 || !move_plan_->behind(table)) continue;
    const bool moved = co_await mapping_.move_table(i);
    if (!moved) co_return;
    co_await commit_if_due();
  }
}

// Exactly `count` clusters, one behind the other and all before `limit`; empty if there are no such
// ones.
Task<HostRange> Qcow2::take_run_below(HostOffset limit, std::uint64_t count) {
  const HostRange none{HostOffset(0), 0};
  if (count == 1) {
    const HostRange space = co_await space_.allocate_clusters(1);
    if (space.start < limit) co_return space;
    space_.free_unlinked(space);
    co_return none;
  }
  const std::optional<std::uint64_t> first =
      co_await refcounts_.find_free(1, limit.bytes() >> geometry_.cluster_bits, count);
  if (!first) co_return none;
  HostRange space{HostOffset(*first << geometry_.cluster_bits), 0};
  for (std::uint64_t taken = 0; taken < count;) {
    const std::uint64_t more = co_await refcounts_.take_run(*first + taken, count - taken);
    taken += more;
    space.length = taken << geometry_.cluster_bits;
    if (more > 0) continue;
    if (taken > 0) space_.free_unlinked(space);
    co_return none;
  }
  if (const auto hit = guard_.find(space)) co_await refuse_write(*hit, space);
  co_return space;
}

// It lies behind the boundary, and nothing else refers to it.
Task<bool> Qcow2::is_movable(HostRange place) {
  if (!move_plan_->behind(place)) co_return false;
  co_return co_await owns_alone(place);
}

// One that is named by the header alone, and by `name` in its new place.
Task<void> Qcow2::move_table_of_header(HostRange table,
                                       const std::function<Task<void>(HostOffset)>& name) {
  const HostRange place = table.align_out(geometry_.cluster_size);
  if (place.length > longest_table) co_return;
  const bool moves = co_await is_movable(place);
  if (!moves) co_return;
  const HostRange space =
      co_await take_run_below(place.start, place.length >> geometry_.cluster_bits);
  if (space.empty()) co_return;
  Buffer bytes(place.length);
  co_await read_padded(*file_, place.start, bytes.span());
  co_await file_->write(space.start, ConstIoVec(bytes.span()));
  co_await commit_counts();
  co_await name(space.start);
  References old;
  old.add(place, geometry_.cluster_bits);
  co_await release_replaced(old);
}

Task<void> Qcow2::move_l1_table() {
  const HostRange table = header_.l1_table();
  if (!move_plan_->behind(table)) co_return;
  const std::uint64_t count = divide_up(table.length, geometry_.cluster_size);
  const HostRange space = co_await take_run_below(table.start, count);
  if (space.empty()) co_return;
  co_await switch_l1(header_.l1_entries, space);
}

Task<void> Qcow2::move_refcount_blocks() {
  const std::uint64_t per_block = header_.refcount_block_entries();
  for (std::uint64_t i = refcounts_.table().size(); i-- > 0;) {
    const HostOffset old(refcounts_.table()[i]);
    const std::uint64_t cluster = old.bytes() >> geometry_.cluster_bits;
    const HostRange range{old, geometry_.cluster_size};
    if (old.bytes() == 0 || !move_plan_->behind(range)) continue;
    const bool dropped = co_await refcounts_.drop_block(i);
    if (dropped) {
      // One that counted itself has gone with its count.
      if (cluster / per_block != i) space_.free_unlinked(range);
      co_await begin_operation();
      continue;
    }
    const HostRange space = co_await take_run_below(old, 1);
    if (space.empty()) co_return;
    co_await begin_operation();  // the count of the new place is stable
    co_await refcounts_.move_block(i, space.start);
    co_await commit_counts();
    space_.free_unlinked(range);
    co_await begin_operation();
  }
}

Task<void> Qcow2::move_refcount_table() {
  const HostRange table = header_.refcount_table();
  if (!move_plan_->behind(table)) co_return;
  const HostRange space = co_await take_run_below(table.start, header_.refcount_table_clusters);
  if (space.empty()) co_return;
  co_await begin_operation();
  co_await refcounts_.move_table(space.start);
  space_.free_unlinked(table);
}

}  // namespace vise::qcow2
