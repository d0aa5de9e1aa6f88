// Internal snapshots: create, apply, delete, view. The order of writes (| is a flush):
//
//   create  COPIED cleared in the active L2 and L1 tables | counts raised, copy of the L1 table,
//   new
//           snapshot table | header names the table | old table freed
//   apply   COPIED cleared in the snapshot's L2 tables, counts raised, new active L1 table | header
//           names it, with the size, in one write | counts of the old tree lowered | COPIED set
//   delete  new snapshot table | header names it | counts of the snapshot lowered | COPIED set
//
// COPIED is thus never set on disk for anything that two tables refer to; clear where it could be
// set only costs a copy. Everything before the write of the header can be lost, everything after it
// leaks at worst.
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "graph/tracking.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {

std::string described(const SnapshotSelector& which) {
  std::string text;
  if (which.word) text = fmt::format("'{}'", *which.word);
  if (which.id) text = fmt::format("with ID '{}'", *which.id);
  if (which.name) {
    text += fmt::format("{}name '{}'", which.id ? " and " : "with ", *which.name);
  }
  return text;
}

std::size_t find_snapshot(const SnapshotTable& table, const SnapshotSelector& which) {
  const auto& all = table.snapshots;
  auto found = all.end();
  if (which.word) {
    found = std::ranges::find(all, *which.word, &Snapshot::id);
    if (found == all.end()) found = std::ranges::find(all, *which.word, &Snapshot::name);
  } else if (which.id || which.name) {
    found = std::ranges::find_if(all, [&](const Snapshot& s) {
      return (!which.id || s.id == *which.id) && (!which.name || s.name == *which.name);
    });
  }
  if (found == all.end()) {
    throw Error(ENOENT, fmt::format("There is no snapshot {} in the image", described(which)));
  }
  return static_cast<std::size_t>(found - all.begin());
}

// One more than the highest there is; IDs that are no numbers do not count.
std::string next_id(const SnapshotTable& table) {
  std::uint64_t highest = 0;
  for (const Snapshot& s : table.snapshots) {
    std::uint64_t id = 0;
    const char* const end = s.id.data() + s.id.size();
    const auto [stop, error] = std::from_chars(s.id.data(), end, id);
    if (error == std::errc() && stop == end && id < UINT64_MAX) highest = std::max(highest, id);
  }
  return fmt::format("{}", highest + 1);
}

// The size a snapshot's disk has: whole sectors, like that of the active one.
std::uint64_t disk_size(const Snapshot& snapshot, const Header& header) {
  const std::uint64_t size = align_down(snapshot.virtual_size, 512);
  if (size > INT64_MAX || divide_up(size, header.l2_coverage()) > max_l1_bytes / 8) {
    throw Error(EFBIG, fmt::format("the disk of the snapshot has {} bytes, more than can be "
                                   "addressed",
                                   snapshot.virtual_size));
  }
  return size;
}

Buffer l1_bytes(std::span<const std::uint64_t> entries) {
  Buffer bytes(entries.size() * 8);
  for (std::size_t i = 0; i < entries.size(); ++i) store_be(bytes.data() + i * 8, entries[i]);
  return bytes;
}

std::vector<std::uint64_t> without_copied(std::span<const std::uint64_t> entries) {
  std::vector<std::uint64_t> result(entries.begin(), entries.end());
  for (std::uint64_t& entry : result) entry &= ~entry_copied;
  return result;
}

}  // namespace

// Afterwards memory holds nothing that the disk does not.
Task<void> Qcow2::begin_operation() {
  require_writable();
  co_await hole_scan_.stop();
  co_await guard_tables();
  co_await settle();
  for (const HostRange& table : refcounts_.take_abandoned()) space_.free_unlinked(table);
  co_await space_.reclaim();
  co_await commit_counts();
}

Task<void> Qcow2::begin_snapshot_operation() {
  if (geometry_.data_file) {
    throw Error(ENOTSUP, "images with an external data file cannot hold snapshots");
  }
  co_await begin_operation();
}

// Space for a table of its own, count 1; {0, 0} for an empty one.
Task<HostRange> Qcow2::allocate_table(std::uint64_t bytes) {
  if (bytes == 0) co_return HostRange{HostOffset(0), 0};
  co_return co_await space_.allocate_contiguous(divide_up(bytes, geometry_.cluster_size));
}

// Lowers the counts of what nothing on disk refers to any more, where that changes which clusters
// snapshots share.
Task<void> Qcow2::release(const References& dropped) {
  space_.forget_packing();
  co_await release_replaced(dropped);
}

// The same where it does not. Forgets what was there before anything can fail: what is free now,
// or becomes a hole later, will hold something else.
Task<void> Qcow2::release_replaced(const References& dropped) {
  const std::vector<std::uint64_t> freed = co_await dropped.lower(refcounts_);
  dropped.for_each([this](std::uint64_t cluster) {
    decoded_.forget({HostOffset(cluster << geometry_.cluster_bits), geometry_.cluster_size});
  });
  for (const std::uint64_t cluster : freed) space_.became_free(cluster);
  co_await commit_counts();
  const std::uint64_t end = file_->size() >> geometry_.cluster_bits;
  for (std::size_t i = 0; i < freed.size();) {
    const std::size_t first = i;
    while (i < freed.size() && freed[i] == freed[first] + (i - first)) ++i;
    const HostRange range{HostOffset(freed[first] << geometry_.cluster_bits),
                          std::uint64_t{i - first} << geometry_.cluster_bits};
    if (settings_.pass_discard_snapshot && freed[i - 1] < end) co_await file_->discard(range);
  }
}

// Sets COPIED in the active tables where the counts allow it again.
Task<void> Qcow2::refresh_copied() {
  const std::vector<std::uint64_t> before = mapping_.l1();
  std::vector<std::uint64_t> l1 = before;
  L1Tree tree(*file_, header_, geometry_, before, guard_);
  const bool changed = co_await tree.set_copied(refcounts_, l1);
  if (changed) {
    const Buffer bytes = l1_bytes(l1);
    co_await file_->write(header_.l1_offset, ConstIoVec(bytes.span()));
  }
  co_await file_->flush();
  mapping_.replace(std::move(l1));
}

// Empties the active L1 entries from `first` on. A power failure in between leaves some of them.
Task<void> Qcow2::drop_l1_entries(std::uint64_t first) {
  std::vector<std::uint64_t> l1 = mapping_.l1();
  if (first >= l1.size()) co_return;
  const std::vector<std::uint64_t> old(l1.begin() + static_cast<std::ptrdiff_t>(first), l1.end());
  if (std::ranges::all_of(old, [](std::uint64_t entry) { return entry == 0; })) co_return;
  L1Tree tree(*file_, header_, geometry_, old, guard_);
  const References dropped = co_await tree.references();
  std::fill(l1.begin() + static_cast<std::ptrdiff_t>(first), l1.end(), 0);
  const Buffer zeroes = Buffer::zeroed(old.size() * 8);
  co_await file_->write(header_.l1_offset + first * 8, ConstIoVec(zeroes.span()));
  co_await file_->flush();
  mapping_.replace(std::move(l1));
  co_await release(dropped);
}

// A table whose bytes and counts are stable after the next commit_counts().
Task<HostRange> Qcow2::write_snapshot_table(const SnapshotTable& table) {
  const std::vector<std::byte> bytes = table.encode();
  if (bytes.size() > max_snapshot_table) {
    throw Error(EFBIG, fmt::format("the snapshot table would have {} bytes, more than {}",
                                   bytes.size(), max_snapshot_table));
  }
  const HostRange space = co_await allocate_table(bytes.size());
  if (!bytes.empty()) co_await file_->write(space.start, ConstIoVec(std::span(bytes)));
  co_return space;
}

// The header names the new table, in one write.
Task<void> Qcow2::switch_snapshot_table(const SnapshotTable& table, HostRange space) {
  const auto fields = [](std::uint64_t count, HostOffset offset) {
    Buffer bytes(12);
    BigEndianWriter out(bytes.span());
    out.u32(static_cast<std::uint32_t>(count));
    out.u64(offset.bytes());
    return bytes;
  };
  const Buffer before = fields(header_.snapshot_count, header_.snapshots_offset);
  const Buffer after = fields(table.snapshots.size(), space.start);
  co_await replace_stable(*file_, HostOffset(field_offset::snapshots), before.span(), after.span(),
                          stopped_);
  header_.snapshot_count = static_cast<std::uint32_t>(table.snapshots.size());
  header_.snapshots_offset = space.start;
  co_await guard_snapshots(table);
}

// Makes all that the active tables hold shared with a copy of the L1 table, and gives that copy.
Task<HostRange> Qcow2::share_active_tree(const References& shared, bool& raised) {
  const std::vector<std::uint64_t> l1 = without_copied(mapping_.l1());
  L1Tree tree(*file_, header_, geometry_, l1, guard_);
  co_await tree.clear_copied(refcounts_);
  const Buffer bytes = l1_bytes(l1);
  if (bytes.size() > 0) co_await file_->write(header_.l1_offset, ConstIoVec(bytes.span()));
  co_await file_->flush();
  mapping_.replace(l1);

  const HostRange copy = co_await allocate_table(bytes.size());
  co_await shared.raise(refcounts_);
  raised = true;
  if (bytes.size() > 0) co_await file_->write(copy.start, ConstIoVec(bytes.span()));
  co_return copy;
}

// After a failure: new tables leak, the rest is undone as far as the disk lets us.
Task<void> Qcow2::unshare(const References& shared, bool raised) {
  try {
    if (raised) co_await release(shared);
    co_await refresh_copied();
  } catch (const Error&) {
    // The first failure is the one to report; what is left is safe (see above).
  }
}

Task<void> Qcow2::create_snapshot(NewSnapshot request) {
  co_await begin_snapshot_operation();
  if (request.name.size() > UINT16_MAX) {
    throw Error(EINVAL, fmt::format("the name of the snapshot has {} bytes, more than {}",
                                    request.name.size(), UINT16_MAX));
  }
  SnapshotTable table = co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  if (table.snapshots.size() >= max_snapshots) {
    throw Error(EFBIG, fmt::format("the image has {} snapshots, the most possible", max_snapshots));
  }
  const HostRange old_table{header_.snapshots_offset, table.length};
  space_.forget_packing();
  L1Tree tree(*file_, header_, geometry_, mapping_.l1(), guard_);
  const References shared = co_await tree.references();
  co_await shared.check_raise(refcounts_);

  Snapshot snapshot;
  snapshot.id = next_id(table);
  snapshot.name = std::move(request.name);
  snapshot.seconds = request.seconds;
  snapshot.nanoseconds = request.nanoseconds;
  snapshot.virtual_size = header_.virtual_size;
  snapshot.icount = 0;
  snapshot.l1_entries = header_.l1_entries;

  bool raised = false;
  HostRange space{HostOffset(0), 0};
  std::exception_ptr failure;
  try {
    const HostRange copy = co_await share_active_tree(shared, raised);
    snapshot.l1_offset = copy.start;
    table.snapshots.push_back(std::move(snapshot));
    space = co_await write_snapshot_table(table);
    co_await commit_counts();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await unshare(shared, raised);
    std::rethrow_exception(failure);
  }
  try {
    co_await switch_snapshot_table(table, space);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    // Where the disk may have the snapshot or not, its counts stay.
    if (!stopped_) co_await unshare(shared, raised);
    std::rethrow_exception(failure);
  }
  References old;
  old.add(old_table, geometry_.cluster_bits);
  co_await release(old);
  // A virtual machine's state is the snapshot's from now on, and no part of the disk.
  try {
    co_await drop_l1_entries(divide_up(header_.virtual_size, header_.l2_coverage()));
  } catch (const Error&) {
    // The snapshot is there all the same. What could not be dropped takes space, no more.
  }
}

Task<void> Qcow2::delete_snapshot(SnapshotSelector which) {
  co_await begin_snapshot_operation();
  SnapshotTable table = co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const std::size_t index = find_snapshot(table, which);
  const Snapshot snapshot = table.snapshots[index];
  std::vector<std::uint64_t> l1 = co_await snapshot.read_l1(*file_, header_);
  L1Tree tree(*file_, header_, geometry_, l1, guard_);
  References dropped = co_await tree.references();
  dropped.add(snapshot.l1_table(), geometry_.cluster_bits);
  dropped.add(HostRange{header_.snapshots_offset, table.length}, geometry_.cluster_bits);

  table.snapshots.erase(table.snapshots.begin() + static_cast<std::ptrdiff_t>(index));
  const HostRange space = co_await write_snapshot_table(table);
  co_await commit_counts();
  co_await switch_snapshot_table(table, space);
  co_await release(dropped);
  co_await refresh_copied();
}

// The active L1 table and the size of the disk become what the snapshot has, in one write.
Task<void> Qcow2::switch_active_tree(const std::vector<std::uint64_t>& l1, std::uint64_t size,
                                     HostOffset place) {
  const auto fields = [this](std::uint64_t disk_size, std::uint64_t entries, HostOffset offset) {
    Buffer bytes(24);
    BigEndianWriter out(bytes.span());
    out.u64(disk_size);
    out.u32(header_.crypt_method);
    out.u32(static_cast<std::uint32_t>(entries));
    out.u64(offset.bytes());
    return bytes;
  };
  const Buffer before = fields(header_.virtual_size, header_.l1_entries, header_.l1_offset);
  const Buffer after = fields(size, l1.size(), place);
  co_await replace_stable(*file_, HostOffset(field_offset::virtual_size), before.span(),
                          after.span(), stopped_);
  header_.virtual_size = size;
  header_.l1_entries = static_cast<std::uint32_t>(l1.size());
  header_.l1_offset = place;
  mapping_.replace(l1);
}

Task<void> Qcow2::apply_snapshot(SnapshotSelector which) {
  co_await begin_snapshot_operation();
  const BitmapSet* bitmaps = node_.tracking().bitmaps.get();
  if (header_.bitmaps || (bitmaps != nullptr && !bitmaps->bitmaps().empty())) {
    throw Error(ENOTSUP, "the image has dirty bitmaps, which would become wrong");
  }
  SnapshotTable table = co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const Snapshot& snapshot = table.snapshots[find_snapshot(table, which)];
  const std::uint64_t size = disk_size(snapshot, header_);
  if (size != header_.virtual_size && header_.version < 3) {
    throw Error(ENOTSUP, fmt::format("the snapshot has a disk of {} bytes, the image one of {}; "
                                     "version 2 images with snapshots cannot change their size",
                                     size, header_.virtual_size));
  }
  std::vector<std::uint64_t> stored = co_await snapshot.read_l1(*file_, header_);
  std::vector<std::uint64_t> l1 = without_copied(stored);
  l1.resize(std::max<std::uint64_t>(l1.size(), divide_up(size, header_.l2_coverage())));

  const std::vector<std::uint64_t> old_l1 = mapping_.l1();
  L1Tree old_tree(*file_, header_, geometry_, old_l1, guard_);
  References dropped = co_await old_tree.references();
  dropped.add(header_.l1_table(), geometry_.cluster_bits);
  L1Tree tree(*file_, header_, geometry_, l1, guard_);
  const References shared = co_await tree.references();
  co_await shared.check_raise(refcounts_);
  co_await tree.clear_copied(refcounts_);

  bool raised = false;
  std::exception_ptr failure;
  try {
    const HostRange space = co_await allocate_table(l1.size() * 8);
    co_await shared.raise(refcounts_);
    raised = true;
    const Buffer bytes = l1_bytes(l1);
    if (bytes.size() > 0) co_await file_->write(space.start, ConstIoVec(bytes.span()));
    co_await commit_counts();
    co_await switch_active_tree(l1, size, space.start);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    if (!stopped_) co_await unshare(shared, raised);
    std::rethrow_exception(failure);
  }
  co_await release(dropped);
  co_await refresh_copied();
}

Task<void> Qcow2::view_snapshot(SnapshotSelector which) {
  if (!read_only_) throw Error(EINVAL, "a snapshot can be viewed in a read-only image only");
  SnapshotTable table = co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const Snapshot& snapshot = table.snapshots[find_snapshot(table, which)];
  const std::uint64_t size = disk_size(snapshot, header_);
  std::vector<std::uint64_t> l1 = co_await snapshot.read_l1(*file_, header_);
  forget_bitmaps();  // of the snapshot they know nothing
  header_.bitmaps.reset();
  header_.virtual_size = size;
  header_.l1_entries = snapshot.l1_entries;
  header_.l1_offset = snapshot.l1_offset;
  mapping_.replace(std::move(l1));
}

}  // namespace vise::qcow2
