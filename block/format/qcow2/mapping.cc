// Looking up and changing L2 entries; making L2 tables.
#include "format/qcow2/mapping.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

Mapping::Mapping(Header& header, const Geometry& geometry, Child& file, Space& space,
                 std::uint64_t slice_size, std::uint64_t cache_size, OverlapGuard& guard)
    : header_(header),
      geometry_(geometry),
      file_(file),
      space_(space),
      guard_(guard),
      cache_(file, slice_size, cache_size, {Event::l2_load, Event::l2_update}, guard,
             Metadata::active_l2) {}

Task<void> Mapping::load() {
  const HostRange range = header_.l1_table();
  Buffer bytes(range.length);
  co_await read_padded(file_, range.start, bytes.span());
  l1_.resize(header_.l1_entries);
  for (std::size_t i = 0; i < l1_.size(); ++i) {
    l1_[i] = load_be<std::uint64_t>(bytes.data() + i * 8);
  }
  guard_tables();
}

void Mapping::guard_tables() {
  guard_.clear(Metadata::active_l2);
  for (const std::uint64_t entry : l1_) {
    guard_.add(Metadata::active_l2, HostOffset(entry & entry_offset_mask));
  }
}

HostOffset Mapping::table_of(std::uint64_t l1_index) const {
  if (l1_index >= l1_.size()) return HostOffset(0);
  const HostOffset table(l1_[l1_index] & entry_offset_mask);
  if (!table.is_aligned(geometry_.cluster_size)) {
    guard_.telling([&] {
      throw Error(EIO, fmt::format("the image is corrupt: L2 table {} lies at {:#x}, which is not "
                                   "cluster-aligned",
                                   l1_index, table.bytes()));
    });
  }
  return table;
}

bool Mapping::has_table(std::uint64_t cluster) const {
  return table_of(geometry_.l1_index(cluster)).bytes() != 0;
}

HostOffset Mapping::slice_of(HostOffset table, std::uint64_t cluster, std::uint64_t* index) const {
  const std::uint64_t per_slice = cache_.slice_size() / geometry_.l2_entry_size;
  const std::uint64_t in_table = geometry_.l2_index(cluster);
  *index = in_table % per_slice;
  return table + in_table / per_slice * cache_.slice_size();
}

// Throws, and has the image marked, if the entry breaks a rule.
Descriptor Mapping::decode_entry(const std::byte* entry, std::uint64_t cluster) const {
  const auto word = load_be<std::uint64_t>(entry);
  const std::uint64_t bitmap =
      geometry_.extended_l2 ? load_be<std::uint64_t>(entry + 8) : std::uint64_t{0};
  return guard_.telling([&] {
    const Descriptor d = Descriptor::decode(word, bitmap, geometry_);
    const std::uint64_t guest = geometry_.guest_offset(cluster).bytes();
    if (geometry_.data_file && d.has_host && d.host.bytes() != guest) {
      throw Error(EIO, fmt::format("the image is corrupt: L2 entry {:#018x} of guest offset {:#x} "
                                   "points to another place in the data file",
                                   word, guest));
    }
    return d;
  });
}

Mapping::Stretch Mapping::decode(TableCache::Ref& slice, std::uint64_t index, std::uint64_t cluster,
                                 std::uint64_t most) const {
  const std::uint64_t per_slice = cache_.slice_size() / geometry_.l2_entry_size;
  Stretch stretch;
  stretch.count = std::min(most, per_slice - index);
  stretch.descriptors.reserve(stretch.count);
  const std::byte* entry = slice.data() + index * geometry_.l2_entry_size;
  for (std::uint64_t i = 0; i < stretch.count; ++i, entry += geometry_.l2_entry_size) {
    stretch.descriptors.push_back(decode_entry(entry, cluster + i));
  }
  return stretch;
}

std::optional<Mapping::Stretch> Mapping::try_get_stretch(std::uint64_t first, std::uint64_t most) {
  const HostOffset table = table_of(geometry_.l1_index(first));
  if (table.bytes() == 0) {
    const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
    Stretch stretch;
    stretch.descriptors.push_back(Descriptor::unallocated());
    stretch.count = std::min(most, per_table - geometry_.l2_index(first));
    stretch.same = true;
    return stretch;
  }
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(table, first, &index);
  TableCache::Ref slice = cache_.try_get(offset);
  if (!slice) return std::nullopt;
  return decode(slice, index, first, most);
}

Task<Mapping::Stretch> Mapping::get_stretch(std::uint64_t first, std::uint64_t most) {
  for (;;) {
    std::optional<Stretch> stretch = try_get_stretch(first, most);
    if (stretch) co_return std::move(*stretch);
    co_await load_slice(first, Use::keep);
  }
}

Task<void> Mapping::load_slice(std::uint64_t cluster, Use use) {
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(table_of(geometry_.l1_index(cluster)), cluster, &index);
  TableCache::Ref slice = co_await cache_.get(offset, use);
}

// Entries are compared as they are stored: an image has runs of thousands of clusters, and whoever
// walks it asks again and again.
std::optional<Mapping::ClusterRun> Mapping::try_get_run(std::uint64_t first, std::uint64_t most,
                                                        Use use) {
  const HostOffset table = table_of(geometry_.l1_index(first));
  if (table.bytes() == 0) {
    const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
    return ClusterRun{Descriptor::unallocated(),
                      std::min(most, per_table - geometry_.l2_index(first))};
  }
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(table, first, &index);
  const TableCache::Ref slice = cache_.try_get(offset, use);
  if (!slice) return std::nullopt;
  const unsigned entry_size = geometry_.l2_entry_size;
  const std::byte* entry = slice.data() + index * entry_size;
  const std::uint64_t left = std::min(most, cache_.slice_size() / entry_size - index);
  const std::uint64_t bitmap =
      geometry_.extended_l2 ? load_be<std::uint64_t>(entry + 8) : std::uint64_t{0};
  std::uint64_t word = load_be<std::uint64_t>(entry);
  ClusterRun run{decode_entry(entry, first)};
  const Descriptor& d = run.descriptor;
  if (d.compressed || !d.is_uniform(geometry_)) return run;
  // Who may write in place does not matter here, but in a data file the flag says what is
  // allocated.
  const std::uint64_t mask = geometry_.data_file ? ~std::uint64_t{0} : ~entry_copied;
  const std::uint64_t step = d.has_host ? geometry_.cluster_size : 0;
  word &= mask;
  while (run.count < left) {
    entry += entry_size;
    word += step;
    if ((load_be<std::uint64_t>(entry) & mask) != word) break;
    if (geometry_.extended_l2 && load_be<std::uint64_t>(entry + 8) != bitmap) break;
    ++run.count;
  }
  return run;
}

Task<Mapping::ClusterRun> Mapping::get_run(std::uint64_t first, std::uint64_t most, Use use) {
  for (;;) {
    const std::optional<ClusterRun> run = try_get_run(first, most, use);
    if (run) co_return *run;
    co_await load_slice(first, use);
  }
}

std::optional<Descriptor> Mapping::try_get(std::uint64_t cluster) {
  std::optional<Stretch> stretch = try_get_stretch(cluster, 1);
  if (!stretch) return std::nullopt;
  return stretch->descriptors.front();
}

Task<Descriptor> Mapping::get(std::uint64_t cluster) {
  Stretch stretch = co_await get_stretch(cluster, 1);
  co_return stretch.descriptors.front();
}

Task<void> Mapping::make_writable(std::uint64_t first, std::uint64_t count) {
  assert(count > 0);
  const std::uint64_t last = geometry_.l1_index(first + count - 1);
  for (std::uint64_t index = geometry_.l1_index(first); index <= last; ++index) {
    assert(index < l1_.size());
    if ((l1_[index] & entry_copied) == 0) co_await make_table(index);
  }
}

// A new table starts as zeros, or as a copy of one that is shared with a snapshot (whose entries
// are copied as they are: their clusters are shared as before). It reaches the disk before the L1
// entry that names it; the count of the old table drops after that.
Task<void> Mapping::make_table(std::uint64_t l1_index) {
  const HostRange fresh = co_await space_.allocate_clusters(1);
  co_await copy_table(l1_index, fresh);
}

Task<bool> Mapping::move_table(std::uint64_t l1_index) {
  const HostRange fresh = co_await space_.allocate_clusters(1);
  if (fresh.start >= table_of(l1_index)) {
    space_.free_unlinked(fresh);
    co_return false;
  }
  co_await copy_table(l1_index, fresh);
  co_return true;
}

Task<void> Mapping::copy_table(std::uint64_t l1_index, HostRange fresh) {
  const HostOffset old_table = table_of(l1_index);
  const std::uint64_t slice_size = cache_.slice_size();
  std::exception_ptr failure;
  try {
    for (std::uint64_t at = 0; at < geometry_.cluster_size; at += slice_size) {
      TableCache::Ref from;
      if (old_table.bytes() != 0) {
        co_await file_.event(Event::l2_alloc_cow_read);
        from = co_await cache_.get(old_table + at);
      }
      TableCache::Ref to = cache_.insert_zeroed(fresh.start + at);
      if (from) std::memcpy(to.data(), from.data(), slice_size);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    cache_.forget(fresh);
    space_.free_unlinked(fresh);
    std::rethrow_exception(failure);
  }
  l1_[l1_index] = fresh.start.bytes() | entry_copied;
  dirty_l1_.insert(l1_index);
  guard_.remove(Metadata::active_l2, old_table);
  guard_.add(Metadata::active_l2, fresh.start);
  if (old_table.bytes() != 0) {
    space_.free_clusters_later({old_table, geometry_.cluster_size}, Space::Reason::overwritten);
  }
}

Task<void> Mapping::set(std::uint64_t first, std::span<const Descriptor> descriptors,
                        Space::Reason reason) {
  const std::uint64_t per_slice = cache_.slice_size() / geometry_.l2_entry_size;
  while (!descriptors.empty()) {
    const std::uint64_t l1_index = geometry_.l1_index(first);
    assert((l1_[l1_index] & entry_copied) != 0);
    std::uint64_t index = 0;
    const HostOffset offset = slice_of(table_of(l1_index), first, &index);
    TableCache::Ref slice = co_await cache_.get(offset);
    const std::uint64_t count = std::min<std::uint64_t>(descriptors.size(), per_slice - index);
    cache_.mark_dirty(slice);  // first, since a corrupt old entry ends this half-way
    for (std::uint64_t i = 0; i < count; ++i) {
      std::byte* entry = slice.data() + (index + i) * geometry_.l2_entry_size;
      const Descriptor old = decode_entry(entry, first + i);
      const Descriptor& fresh = descriptors[i];
      const Descriptor::Words words = fresh.encode(geometry_);
      store_be(entry, words.word);
      if (geometry_.extended_l2) store_be(entry + 8, words.bitmap);
      const bool kept = fresh.has_host && old.has_host && fresh.host == old.host &&
                        fresh.compressed == old.compressed;
      if (!kept) space_.free_later(old, reason);
    }
    first += count;
    descriptors = descriptors.subspan(count);
  }
}

void Mapping::drop_tables(std::uint64_t first) {
  for (std::uint64_t index = first; index < l1_.size(); ++index) {
    const HostOffset table = table_of(index);
    if (table.bytes() == 0) continue;
    l1_[index] = 0;
    dirty_l1_.insert(index);
    guard_.remove(Metadata::active_l2, table);
    cache_.forget({table, geometry_.cluster_size});
    space_.free_clusters_later({table, geometry_.cluster_size}, Space::Reason::discarded);
  }
}

void Mapping::replace(std::vector<std::uint64_t> l1) {
  assert(dirty_l1_.empty());
  cache_.clear();
  l1_ = std::move(l1);
  guard_tables();
}

Mapping::Changes Mapping::changes() const {
  Changes changes;
  for (const std::uint64_t index : dirty_l1_) {
    changes.l1_indices.push_back(index);
    changes.l1_entries.push_back(l1_[index]);
  }
  std::vector<std::uint64_t> fresh;
  for (const std::uint64_t entry : changes.l1_entries) fresh.push_back(entry & entry_offset_mask);
  std::ranges::sort(fresh);
  const auto is_new = [&](HostOffset slice) {
    const std::uint64_t table = slice.align_down(geometry_.cluster_size).bytes();
    return std::ranges::binary_search(fresh, table);
  };
  changes.new_tables = cache_.dirty_images(is_new);
  changes.slices = cache_.dirty_images([&](HostOffset slice) { return !is_new(slice); });
  return changes;
}

Task<void> Mapping::write_new_tables(Changes& changes) {
  if (changes.new_tables.empty()) co_return;
  co_await file_.event(Event::l2_alloc_write);
  co_await cache_.write(std::move(changes.new_tables));
}

Task<void> Mapping::write_links(Changes& changes) {
  co_await cache_.write(std::move(changes.slices));
  for (std::size_t i = 0; i < changes.l1_indices.size(); ++i) {
    const std::uint64_t index = changes.l1_indices[i];
    Buffer entry(8);
    store_be(entry.data(), changes.l1_entries[i]);
    co_await file_.event(Event::l1_update);
    const HostRange place{header_.l1_offset + index * 8, entry.size()};
    const auto hit = guard_.find(place, Metadata::active_l1);
    if (hit) co_await guard_.refuse(*hit, place);
    co_await file_.write(place.start, ConstIoVec(entry.span()));
    if (l1_[index] == changes.l1_entries[i]) dirty_l1_.erase(index);
  }
}

}  // namespace vise::qcow2
