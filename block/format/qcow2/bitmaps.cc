// Persistent dirty bitmaps (qcow2.md 7). While the image is open for writing all of them are
// flagged in_use on disk, and what is true lives in memory, in the node's BitmapSet. They are
// written when the image is closed or becomes read-only:
//
//   1. changed bitmaps and a new directory go to new clusters, and become stable with their counts;
//   2. one write of the header switches to the new directory;
//   3. after that is stable, the old clusters are given back.
//
// A crash before (2) leaves bitmaps that are in use, whose bits nobody trusts.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "format/qcow2/bitmap_data.h"
#include "format/qcow2/qcow2.h"
#include "graph/bitmaps.h"
#include "graph/tracking.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t largest_write = 1u << 20;  // bytes

NodeBitmap unloaded(const BitmapEntry& entry) {
  NodeBitmap bitmap{.name = entry.name, .bits = DirtyBitmap(0, entry.granularity())};
  bitmap.enabled = false;
  bitmap.persistent = true;
  bitmap.inconsistent = true;
  return bitmap;
}

std::vector<NodeBitmap*> persistent_bitmaps(Node& node) {
  std::vector<NodeBitmap*> result;
  const BitmapSet* set = node.tracking().bitmaps.get();
  if (set == nullptr) return result;
  for (const auto& bitmap : set->bitmaps()) {
    if (bitmap->persistent) result.push_back(bitmap.get());
  }
  return result;
}

}  // namespace

void Qcow2::warn(const std::string& text) const {
  const Graph& graph = node_.graph();
  if (graph.on_warning) graph.on_warning(fmt::format("{}: {}", node_.filename(), text));
}

// A writer would have to drop what it cannot read, so that it had better not start; a reader can do
// without.
bool Qcow2::costs_only_bitmaps(const Error& error) const {
  return error.code() == EINVAL || error.code() == EFBIG || (error.code() == EIO && read_only_);
}

// A directory that cannot be read means that all bitmaps are lost; the image itself is fine.
Task<void> Qcow2::load_bitmaps() {
  bitmaps_loaded_ = true;
  if (!header_.bitmaps) co_return;
  std::vector<BitmapEntry> entries;
  std::string problem;
  try {
    std::vector<BitmapEntry> found = co_await read_bitmap_directory(*file_, header_);
    entries = std::move(found);
  } catch (const Error& error) {
    if (!costs_only_bitmaps(error)) throw;
    problem = error.message();
  }
  if (!problem.empty()) {
    bitmaps_lost_ = true;
    warn(fmt::format("The dirty bitmaps are lost, their directory is damaged: {}", problem));
    co_return;
  }
  BitmapBudget budget;
  budget.stored_bytes = file_->size();
  BitmapSet& set = bitmaps_of(node_);
  for (BitmapEntry& entry : entries) {
    NodeBitmap& bitmap = set.add(unloaded(entry));
    if (!entry.in_use) co_await load_bitmap(entry, bitmap, budget);
    const std::uint64_t generation = bitmap.bits.generation();
    stored_bitmaps_.push_back({std::move(entry), generation});
  }
}

// One whose table is damaged is as bad as one that was not closed.
Task<void> Qcow2::load_bitmap(const BitmapEntry& entry, NodeBitmap& bitmap, BitmapBudget& budget) {
  try {
    DirtyBitmap bits = co_await read_bitmap_data(*file_, header_, entry, budget);
    bitmap.bits = std::move(bits);
    bitmap.enabled = entry.automatic;
    bitmap.inconsistent = false;
  } catch (const Error& error) {
    if (!costs_only_bitmaps(error)) throw;
    warn(fmt::format("Bitmap '{}' cannot be used: {}", entry.name, error.message()));
  }
}

// Before anything else is written. The bit is off while the directory is half written.
Task<void> Qcow2::claim_bitmaps() {
  const std::uint64_t others = header_.autoclear_features & ~autoclear::bitmaps;
  if (!bitmaps_lost_ && header_.bitmaps) {
    const bool alone = co_await owns_alone(header_.bitmaps->directory);
    if (!alone) {
      bitmaps_lost_ = true;
      warn("The dirty bitmaps are lost: others may own the clusters of their directory");
    }
  }
  if (bitmaps_lost_) {
    // The extension means nothing from then on; its clusters are leaks that check finds.
    co_await write_autoclear(others);
    header_.bitmaps.reset();
    forget_bitmaps();
    bitmaps_lost_ = false;
  }
  const bool claimed = std::ranges::all_of(
      stored_bitmaps_, [](const StoredBitmap& stored) { return stored.entry.in_use; });
  if (claimed) co_return;
  std::vector<BitmapEntry> entries;
  for (const StoredBitmap& stored : stored_bitmaps_) {
    entries.push_back(stored.entry);
    entries.back().in_use = true;
  }
  const std::vector<std::byte> directory = encode_bitmap_directory(entries);
  co_await write_autoclear(others);
  co_await file_->write(header_.bitmaps->directory.start, ConstIoVec(std::span(directory)));
  co_await file_->flush();
  co_await write_autoclear(others | autoclear::bitmaps);
  for (StoredBitmap& stored : stored_bitmaps_) stored.entry.in_use = true;
}

Task<bool> Qcow2::owns_alone(HostRange range) {
  for (const HostRange& other :
       {HostRange{HostOffset(0), 1}, header_.l1_table(), header_.refcount_table()}) {
    if (!other.empty() && other.overlaps(range)) co_return false;
  }
  const std::uint64_t last = (range.end() - 1).bytes() >> geometry_.cluster_bits;
  for (std::uint64_t c = range.start.bytes() >> geometry_.cluster_bits; c <= last; ++c) {
    const std::uint64_t count = co_await refcounts_.get(c);
    if (count != 1) co_return false;
  }
  co_return true;
}

void Qcow2::forget_bitmaps() {
  for (const NodeBitmap* bitmap : persistent_bitmaps(node_)) bitmaps_of(node_).remove(*bitmap);
  stored_bitmaps_.clear();
}

// Nothing is in flight, and what the guest has written is stable.
Task<void> Qcow2::store_bitmaps() {
  if (!bitmaps_loaded_) co_return;  // opened for a check, which minds the disk alone
  std::vector<StoredBitmap> next;
  std::vector<BitmapEntry> replaced;
  for (const StoredBitmap& stored : stored_bitmaps_) replaced.push_back(stored.entry);
  for (const NodeBitmap* bitmap : persistent_bitmaps(node_)) {
    const auto old = std::ranges::find(stored_bitmaps_, bitmap->name,
                                       [](const StoredBitmap& s) { return s.entry.name; });
    const bool known = old != stored_bitmaps_.end();
    if (bitmap->inconsistent && !known) continue;  // there is nothing in it worth a place
    StoredBitmap stored;
    if (known) stored = *old;
    if (!bitmap->inconsistent) {
      const std::uint64_t entries = bitmap_table_entries(bitmap->bits, header_);
      const bool as_stored = known && stored.generation == bitmap->bits.generation() &&
                             stored.entry.table.length == entries * 8;
      stored.entry.name = bitmap->name;
      stored.entry.granularity_bits =
          static_cast<unsigned>(std::countr_zero(bitmap->bits.granularity()));
      stored.entry.automatic = bitmap->enabled;
      stored.entry.in_use = false;
      stored.generation = bitmap->bits.generation();
      if (!as_stored) {
        const HostRange table = co_await write_bitmap(bitmap->bits);
        stored.entry.table = table;
      }
    }
    std::erase_if(replaced, [&](const BitmapEntry& e) { return e.table == stored.entry.table; });
    next.push_back(std::move(stored));
  }
  if (next.empty() && !header_.bitmaps) co_return;
  co_await switch_bitmaps(std::move(next), std::move(replaced));
}

// To new clusters, not stable yet. Gives the table.
Task<HostRange> Qcow2::write_bitmap(const DirtyBitmap& bits) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  const std::uint64_t entries = bitmap_table_entries(bits, header_);
  std::vector<std::uint64_t> needed;  // entries that have data
  for (std::uint64_t i = 0; i < entries; ++i) {
    if (!bits.is_zero(i * cluster_size, cluster_size)) needed.push_back(i);
  }
  const HostRange table = co_await space_.allocate_contiguous(divide_up(entries * 8, cluster_size));
  Buffer bytes = Buffer::zeroed(table.length);
  const std::uint64_t most = std::max<std::uint64_t>(1, largest_write / cluster_size);
  for (std::size_t done = 0; done < needed.size();) {
    const HostRange space =
        co_await space_.allocate_clusters(std::min<std::uint64_t>(most, needed.size() - done));
    Buffer data(space.length);
    for (std::uint64_t at = 0; at < space.length; at += cluster_size, ++done) {
      bits.save(needed[done] * cluster_size, data.span().subspan(at, cluster_size));
      store_be(bytes.data() + needed[done] * 8, (space.start + at).bytes());
    }
    co_await file_->write(space.start, ConstIoVec(data.span()));
  }
  co_await file_->write(table.start, ConstIoVec(bytes.span()));
  co_return HostRange{table.start, entries * 8};
}

// The new directory takes effect, then what it replaces is given back.
Task<void> Qcow2::switch_bitmaps(std::vector<StoredBitmap> next,
                                 std::vector<BitmapEntry> replaced) {
  std::optional<BitmapsExtension> extension;
  if (!next.empty()) {
    std::vector<BitmapEntry> entries;
    for (const StoredBitmap& stored : next) entries.push_back(stored.entry);
    std::vector<std::byte> directory = encode_bitmap_directory(entries);
    const std::uint64_t length = directory.size();
    const HostRange space =
        co_await space_.allocate_contiguous(divide_up(length, geometry_.cluster_size));
    directory.resize(space.length);
    co_await file_->write(space.start, ConstIoVec(std::span(std::as_const(directory))));
    extension =
        BitmapsExtension{static_cast<std::uint32_t>(next.size()), HostRange{space.start, length}};
  }
  co_await commit_counts();
  const std::optional<BitmapsExtension> old = header_.bitmaps;
  Header header = header_;
  header.bitmaps = extension;
  header.autoclear_features &= ~autoclear::bitmaps;
  if (extension) header.autoclear_features |= autoclear::bitmaps;
  co_await write_header(std::move(header));
  stored_bitmaps_ = std::move(next);

  if (old) space_.free_unlinked(old->directory);
  for (const HostRange& table : refcounts_.take_abandoned()) space_.free_unlinked(table);
  for (const BitmapEntry& entry : replaced) {
    const std::vector<HostRange> clusters = co_await bitmap_clusters(*file_, header_, entry);
    for (const HostRange& range : clusters) space_.free_unlinked(range);
  }
  co_await space_.reclaim();
}

Task<void> Qcow2::remove_stored(std::string name) {
  const auto is_it = [&](const StoredBitmap& stored) { return stored.entry.name == name; };
  const auto found = std::ranges::find_if(stored_bitmaps_, is_it);
  if (found == stored_bitmaps_.end()) co_return;
  std::vector<BitmapEntry> removed = {found->entry};
  std::vector<StoredBitmap> next = stored_bitmaps_;
  std::erase_if(next, is_it);
  co_await begin_operation();
  co_await switch_bitmaps(std::move(next), std::move(removed));
  co_await settle();
}

void Qcow2::check_storable(std::string_view name, std::uint64_t granularity) const {
  if (header_.version < 3) throw Error(ENOTSUP, "A version 2 image cannot store bitmaps");
  const std::vector<NodeBitmap*> bitmaps = persistent_bitmaps(node_);
  if (bitmaps.size() >= max_bitmaps) {
    throw Error(EFBIG, fmt::format("The image has {} bitmaps, as many as it can", max_bitmaps));
  }
  std::uint64_t directory = bitmap_entry_size(name.size());
  for (const NodeBitmap* bitmap : bitmaps) directory += bitmap_entry_size(bitmap->name.size());
  if (directory > max_bitmap_directory) {
    throw Error(EFBIG, fmt::format("The directory of bitmaps would have more than {} bytes",
                                   max_bitmap_directory));
  }
  check_bitmap_size(name, granularity, header_.virtual_size);
  Header header = header_;
  header.bitmaps = BitmapsExtension{1, {HostOffset(0), 32}};
  header.autoclear_features |= autoclear::bitmaps;
  static_cast<void>(header.encode());  // throws if there is no room for the extension
}

void Qcow2::check_bitmap_size(std::string_view name, std::uint64_t granularity,
                              std::uint64_t size) const {
  if (size == 0) throw Error(EINVAL, "The bitmaps of an empty disk cannot be stored");
  const std::uint64_t bytes = divide_up(divide_up(size, granularity), 8);
  if (divide_up(bytes, geometry_.cluster_size) * geometry_.cluster_size > max_bitmap_data) {
    throw Error(EFBIG, fmt::format("Bitmap '{}' with a granularity of {} would take more than {} "
                                   "bytes",
                                   name, granularity, max_bitmap_data));
  }
}

// The stored bitmaps follow the size of the disk, which those that nobody can read cannot.
void Qcow2::check_bitmaps_can_resize(std::uint64_t size) const {
  for (const NodeBitmap* bitmap : persistent_bitmaps(node_)) {
    if (bitmap->inconsistent) {
      throw Error(ENOTSUP, fmt::format("An image with an inconsistent bitmap ('{}') cannot be "
                                       "resized",
                                       bitmap->name))
          .with_hint("Remove the bitmap first");
    }
    check_bitmap_size(bitmap->name, bitmap->bits.granularity(), size);
  }
}

}  // namespace vise::qcow2
