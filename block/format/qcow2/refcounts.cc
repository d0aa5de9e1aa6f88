// Reading and changing reference counts, and making room for more of them.
#include "format/qcow2/refcounts.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "format/qcow2/refcount_packing.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t block_offset_mask = ~std::uint64_t{511};
constexpr std::uint64_t most_table_bytes = 8u << 20;  // the format's limit as every reader has it
constexpr const char* way_out = "'amend -o refcount_bits=16' makes room for more references";

std::uint64_t slice_size_for(const Header& header) {
  return std::min<std::uint64_t>(header.cluster_size(), 16384);
}

}  // namespace

Refcounts::Refcounts(Header& header, Child& file, std::uint64_t cache_size, OverlapGuard& guard,
                     bool& stopped)
    : header_(header),
      file_(file),
      guard_(guard),
      stopped_(stopped),
      cache_(file, slice_size_for(header), cache_size,
             {Event::refblock_load, Event::refblock_update}, guard, Metadata::refcount_block) {}

Task<void> Refcounts::load() {
  const HostRange range = header_.refcount_table();
  Buffer bytes(range.length);
  co_await file_.event(Event::reftable_load);
  co_await read_padded(file_, range.start, bytes.span());
  table_.resize(range.length / 8);
  for (std::size_t i = 0; i < table_.size(); ++i) {
    table_[i] = load_be<std::uint64_t>(bytes.data() + i * 8) & block_offset_mask;
  }
  guard_blocks();
}

void Refcounts::guard_blocks() {
  guard_.clear(Metadata::refcount_block);
  for (const std::uint64_t block : table_) {
    if (block != 0) guard_.add(Metadata::refcount_block, HostOffset(block));
  }
}

Task<void> Refcounts::reload() {
  assert(unhooked_.empty());
  cache_.clear();
  abandoned_.clear();
  scan_ = 1;
  co_await load();
}

HostOffset Refcounts::block_of(std::uint64_t cluster) const {
  const std::uint64_t index = cluster / entries_per_block();
  if (index >= table_.size()) return HostOffset(0);
  const HostOffset block(table_[index]);
  if (!block.is_aligned(header_.cluster_size())) {
    throw Error(EIO, fmt::format("the image is corrupt: refcount block {} lies at {:#x}, which is "
                                 "not cluster-aligned",
                                 index, block.bytes()));
  }
  return block;
}

// For those to whom a count matters.
HostOffset Refcounts::required_block_of(std::uint64_t cluster) const {
  return guard_.telling([&] { return block_of(cluster); });
}

HostOffset Refcounts::slice_of(HostOffset block, std::uint64_t cluster,
                               std::uint64_t* index) const {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  const std::uint64_t in_block = cluster % entries_per_block();
  *index = in_block % per_slice;
  return block + in_block / per_slice * cache_.slice_size();
}

std::uint64_t Refcounts::load_count(const std::byte* slice, std::uint64_t index) const {
  return load_refcount(slice, header_.refcount_order, index);
}

void Refcounts::store_count(std::byte* slice, std::uint64_t index, std::uint64_t count) const {
  store_refcount(slice, header_.refcount_order, index, count);
}

Task<std::uint64_t> Refcounts::get(std::uint64_t cluster) {
  const HostOffset block = required_block_of(cluster);
  if (block.bytes() == 0) co_return 0;
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(block, cluster, &index);
  TableCache::Ref slice = co_await cache_.get(offset);
  co_return load_count(slice.data(), index);
}

Task<std::uint64_t> Refcounts::count_used(std::uint64_t clusters, std::uint64_t enough) {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  std::uint64_t used = 0;
  for (std::uint64_t first = 0; first < clusters && used < enough;) {
    const HostOffset block = block_of(first);
    if (block.bytes() == 0) {
      first += entries_per_block();
      continue;
    }
    std::uint64_t index = 0;
    const HostOffset offset = slice_of(block, first, &index);
    TableCache::Ref slice = co_await cache_.get(offset);
    const std::uint64_t count = std::min(per_slice, clusters - first);
    for (std::uint64_t i = 0; i < count; ++i) {
      if (load_count(slice.data(), i) != 0) ++used;
    }
    first += count;
  }
  co_return used;
}

Task<void> Refcounts::increase(std::uint64_t cluster) {
  for (;;) {
    const HostOffset block = required_block_of(cluster);
    if (block.bytes() != 0) {
      std::uint64_t index = 0;
      const HostOffset offset = slice_of(block, cluster, &index);
      TableCache::Ref slice = co_await cache_.get(offset);
      const std::uint64_t count = load_count(slice.data(), index);
      if (count >= max_count()) {
        throw Error(EFBIG, fmt::format("host cluster {} has the highest reference count that {} "
                                       "bits can hold",
                                       cluster, header_.refcount_bits()))
            .with_hint(way_out);
      }
      store_count(slice.data(), index, count + 1);
      cache_.mark_dirty(slice);
      co_return;
    }
    co_await add_block(cluster);
  }
}

Task<bool> Refcounts::try_increase(std::uint64_t cluster, std::uint64_t references,
                                   std::uint64_t most) {
  const HostOffset block = required_block_of(cluster);
  if (block.bytes() == 0) co_return false;
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(block, cluster, &index);
  TableCache::Ref slice = co_await cache_.get(offset);
  const std::uint64_t count = load_count(slice.data(), index);
  most = std::min(most, max_count());
  if (count == 0 || count > most || most - count < references) co_return false;
  store_count(slice.data(), index, count + references);
  cache_.mark_dirty(slice);
  co_return true;
}

Task<std::optional<std::uint64_t>> Refcounts::decrease(std::uint64_t cluster) {
  const HostOffset block = required_block_of(cluster);
  if (block.bytes() == 0) co_return std::nullopt;
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(block, cluster, &index);
  TableCache::Ref slice = co_await cache_.get(offset);
  const std::uint64_t count = load_count(slice.data(), index);
  if (count == 0) co_return std::nullopt;
  store_count(slice.data(), index, count - 1);
  cache_.mark_dirty(slice);
  co_return count - 1;
}

// Calls `change(cluster, count, references)`, which gives the new count, slice by slice. Clusters
// without refcount block have count 0, which `change` must leave.
template <class F>
Task<void> Refcounts::for_each_count(std::uint64_t first, std::span<const std::uint32_t> references,
                                     F change) {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  for (std::uint64_t i = 0; i < references.size();) {
    const std::uint64_t cluster = first + i;
    const std::uint64_t end =
        std::min<std::uint64_t>(references.size(), i + per_slice - cluster % per_slice);
    const bool touched = std::ranges::any_of(references.subspan(i, end - i),
                                             [](std::uint32_t times) { return times != 0; });
    const HostOffset block = touched ? required_block_of(cluster) : HostOffset(0);
    TableCache::Ref slice;
    std::uint64_t index = 0;
    if (block.bytes() != 0) {
      const HostOffset offset = slice_of(block, cluster, &index);
      slice = co_await cache_.get(offset);
    }
    bool changed = false;
    for (; i < end; ++i, ++index) {
      if (references[i] == 0) continue;
      const std::uint64_t count = slice ? load_count(slice.data(), index) : 0;
      const std::uint64_t fresh = change(first + i, count, references[i]);
      if (fresh == count) continue;
      store_count(slice.data(), index, fresh);
      changed = true;
    }
    if (changed) cache_.mark_dirty(slice);
  }
}

Task<void> Refcounts::check_raise(std::uint64_t first, std::span<const std::uint32_t> references) {
  const auto check = [this](std::uint64_t cluster, std::uint64_t count, std::uint32_t times) {
    if (count == 0) {
      throw Error(EIO, fmt::format("the image is corrupt: host cluster {} is in use but counts as "
                                   "free; 'check -r all' may repair it",
                                   cluster));
    }
    if (count > max_count() || max_count() - count < times) {
      throw Error(EFBIG, fmt::format("host cluster {} has {} references; {} more are too many for "
                                     "refcounts of {} bits",
                                     cluster, count, times, header_.refcount_bits()))
          .with_hint(way_out);
    }
    return count;
  };
  co_await for_each_count(first, references, check);
}

Task<void> Refcounts::raise(std::uint64_t first, std::span<const std::uint32_t> references) {
  const auto add = [](std::uint64_t, std::uint64_t count, std::uint32_t times) {
    return count == 0 ? count : count + times;
  };
  co_await for_each_count(first, references, add);
}

Task<void> Refcounts::lower(std::uint64_t first, std::span<const std::uint32_t> references,
                            std::vector<std::uint64_t>& freed) {
  const auto subtract = [&freed](std::uint64_t cluster, std::uint64_t count, std::uint32_t times) {
    if (count < times) return count;
    if (count == times) freed.push_back(cluster);
    return count - times;
  };
  co_await for_each_count(first, references, subtract);
}

Task<std::optional<std::uint64_t>> Refcounts::find_free(std::uint64_t first, std::uint64_t end,
                                                        std::uint64_t count) {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  std::uint64_t row = 0;  // clusters before `first` that are free
  while (first < end && row < count) {
    const HostOffset block = required_block_of(first);
    if (block.bytes() == 0) {
      // Nobody can take clusters there without a block, which takes the first of them.
      row = 0;
      first = (first / entries_per_block() + 1) * entries_per_block();
      continue;
    }
    std::uint64_t index = 0;
    const HostOffset offset = slice_of(block, first, &index);
    TableCache::Ref slice = co_await cache_.get(offset);
    for (; index < per_slice && first < end && row < count; ++index, ++first) {
      row = load_count(slice.data(), index) == 0 ? row + 1 : 0;
    }
  }
  if (row < count) co_return std::nullopt;
  co_return first - count;
}

Task<std::uint64_t> Refcounts::take_run(std::uint64_t first, std::uint64_t most) {
  const HostOffset block = required_block_of(first);
  if (block.bytes() == 0) co_return 0;
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(block, first, &index);
  TableCache::Ref slice = co_await cache_.get(offset);
  co_return take_zeroes(slice, index, most);
}

std::uint64_t Refcounts::take_zeroes(TableCache::Ref& slice, std::uint64_t index,
                                     std::uint64_t most) {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  std::uint64_t count = 0;
  while (index < per_slice && count < most && load_count(slice.data(), index) == 0) {
    store_count(slice.data(), index, 1);
    ++index, ++count;
  }
  if (count > 0) cache_.mark_dirty(slice);
  return count;
}

Task<Refcounts::Run> Refcounts::take_free(std::uint64_t most) {
  const std::uint64_t per_slice = cache_.slice_size() * 8 >> header_.refcount_order;
  for (;;) {
    const std::uint64_t from = scan_;
    const HostOffset block = required_block_of(from);
    if (block.bytes() == 0) {
      co_await add_block(from);
      continue;
    }
    std::uint64_t index = 0;
    const HostOffset offset = slice_of(block, from, &index);
    TableCache::Ref slice = co_await cache_.get(offset);
    if (scan_ != from) continue;  // somebody else took clusters, or gave some back, meanwhile

    while (index < per_slice && load_count(slice.data(), index) != 0) ++index, ++scan_;
    if (index == per_slice) continue;
    const std::uint64_t first = scan_;
    // Host offsets end at 2^56, where the bits of an L2 entry do.
    if (first >= std::uint64_t{1} << (56 - header_.cluster_bits)) {
      throw Error(EFBIG, "the image file has reached the largest size the format can address");
    }
    const std::uint64_t count = take_zeroes(slice, index, most);
    scan_ += count;
    co_return Run{first, count};
  }
}

// The new block is the first cluster of the range it covers that is asked for: nothing there can
// be in use, since there were no counts, and the block describes itself.
Task<void> Refcounts::add_block(std::uint64_t cluster) {
  co_await file_.event(Event::refblock_alloc);
  const std::uint64_t table_index = cluster / entries_per_block();
  if (table_index >= table_.size()) {
    co_await grow_table(cluster);
    co_return;
  }
  if (table_[table_index] != 0) co_return;
  const HostOffset block(cluster << header_.cluster_bits);
  const HostRange place{block, header_.cluster_size()};
  if (const auto hit = guard_.find(place)) co_await guard_.refuse(*hit, place);
  table_[table_index] = block.bytes();
  guard_.add(Metadata::refcount_block, block);
  for (std::uint64_t at = 0; at < header_.cluster_size(); at += cache_.slice_size()) {
    cache_.insert_zeroed(block + at);
  }
  unhooked_.push_back({table_index, block});
  std::uint64_t index = 0;
  const HostOffset offset = slice_of(block, cluster, &index);
  TableCache::Ref slice = cache_.try_get(offset);
  assert(slice);  // just inserted, and dirty slices stay
  store_count(slice.data(), index, 1);
  cache_.mark_dirty(slice);
}

Task<void> Refcounts::grow_table(std::uint64_t cluster) {
  // Protects the growth as a whole; innermost lock, nothing else is waited for under it but I/O.
  AsyncMutex::Guard guard = co_await growth_.lock();
  if (cluster / entries_per_block() < table_.size()) co_return;  // somebody else's growth did it
  co_await file_.event(Event::reftable_grow);
  const GrownTable plan = plan_growth(cluster, 0);
  co_await install(plan);
}

Task<Refcounts::Run> Refcounts::take_behind_new_table(std::uint64_t count) {
  Run run{0, 0};
  {
    AsyncMutex::Guard guard = co_await growth_.lock();
    co_await file_.event(Event::reftable_grow);
    const GrownTable plan = plan_growth(0, count);
    co_await install(plan);
    run.first = (plan.offset.bytes() + plan.image.size()) >> header_.cluster_bits;
  }
  while (run.count < count) {
    const std::uint64_t taken = co_await take_run(run.first + run.count, count - run.count);
    if (taken == 0) break;  // somebody else's by now
    run.count += taken;
  }
  co_return run;
}

// A larger table goes to where the old one ends to cover, since nothing can be in use there:
// [new table][blocks that count the table and themselves]. All of it is stable before the header
// names it, and only then does memory change, so that a failure leaves everything as it was.
Task<void> Refcounts::install(const GrownTable& plan) {
  const HostRange place{plan.offset, plan.image.size()};
  if (const auto hit = guard_.find(place)) co_await guard_.refuse(*hit, place);
  // Blocks that the old table on disk lacks are named by the new one: they must be stable too.
  co_await file_.event(Event::refblock_alloc_write_blocks);
  co_await write_blocks(unhooked_);
  co_await file_.event(Event::refblock_alloc_write_table);
  co_await file_.write(plan.offset, ConstIoVec(plan.image.span()));
  co_await file_.flush();
  const HostRange old = header_.refcount_table();
  co_await switch_table(plan.offset, plan.clusters);
  abandoned_.push_back(old);
  // Blocks added meanwhile are in table_ and still unhooked: they enter the new table next commit.
  table_.resize(plan.clusters * header_.cluster_size() / 8);
  for (const NewBlock& block : plan.blocks) table_[block.index] = block.offset.bytes();
  guard_blocks();
}

// The header names the table at `offset`, which is stable, from now on.
Task<void> Refcounts::switch_table(HostOffset offset, std::uint32_t clusters) {
  const auto fields = [](HostOffset table, std::uint32_t length) {
    Buffer bytes(12);
    BigEndianWriter out(bytes.span());
    out.u64(table.bytes());
    out.u32(length);
    return bytes;
  };
  const Buffer before = fields(header_.refcount_table_offset, header_.refcount_table_clusters);
  const Buffer after = fields(offset, clusters);
  co_await file_.event(Event::refblock_alloc_switch_table);
  co_await replace_stable(file_, HostOffset(field_offset::refcount_table), before.span(),
                          after.span(), stopped_);
  header_.refcount_table_offset = offset;
  header_.refcount_table_clusters = clusters;
}

Task<void> Refcounts::move_table(HostOffset to) {
  assert(!is_dirty());
  Buffer image = Buffer::zeroed(header_.refcount_table().length);
  for (std::size_t i = 0; i < table_.size(); ++i) store_be(image.data() + i * 8, table_[i]);
  co_await file_.write(to, ConstIoVec(image.span()));
  co_await file_.flush();
  co_await switch_table(to, header_.refcount_table_clusters);
}

Task<bool> Refcounts::drop_block(std::uint64_t index) {
  assert(!is_dirty());
  const HostOffset block(table_[index]);
  const std::uint64_t first = index * entries_per_block();
  for (std::uint64_t i = 0; i < entries_per_block(); ++i) {
    const std::uint64_t count = co_await get(first + i);
    if (count != 0 && first + i != block.bytes() >> header_.cluster_bits) co_return false;
  }
  Buffer before(8);
  store_be(before.data(), table_[index]);
  const Buffer after = Buffer::zeroed(8);
  co_await replace_stable(file_, header_.refcount_table_offset + index * 8, before.span(),
                          after.span(), stopped_);
  guard_.remove(Metadata::refcount_block, block);
  table_[index] = 0;
  cache_.forget({block, header_.cluster_size()});
  co_return true;
}

Task<void> Refcounts::move_block(std::uint64_t index, HostOffset to) {
  assert(!is_dirty());
  const HostOffset from(table_[index]);
  for (std::uint64_t at = 0; at < header_.cluster_size(); at += cache_.slice_size()) {
    TableCache::Ref old = co_await cache_.get(from + at);
    TableCache::Ref fresh = cache_.insert_zeroed(to + at);
    std::memcpy(fresh.data(), old.data(), cache_.slice_size());
    cache_.mark_dirty(fresh);
  }
  guard_.remove(Metadata::refcount_block, from);
  guard_.add(Metadata::refcount_block, to);
  table_[index] = to.bytes();
  unhooked_.push_back({index, to});
}

Task<void> Refcounts::copy_counts(ClusterCounts& counts) {
  const std::uint64_t per_block = entries_per_block();
  for (std::uint64_t index = 0; index < table_.size(); ++index) {
    if (table_[index] == 0) continue;
    const std::uint64_t first = index * per_block;
    for (std::uint64_t c = first; c < std::min(first + per_block, counts.size()); ++c) {
      const std::uint64_t count = co_await get(c);
      if (count != 0) counts.set(c, count);
    }
  }
}

Refcounts::GrownTable Refcounts::plan_growth(std::uint64_t cluster, std::uint64_t behind) const {
  const std::uint64_t cluster_size = header_.cluster_size();
  const std::uint64_t per_block = entries_per_block();
  const std::uint64_t first = std::max(cluster, table_.size() * per_block);
  std::uint64_t table_clusters = 0;
  std::uint64_t blocks = 0;
  // More clusters need more blocks and perhaps a longer table: until nothing changes.
  for (;;) {
    const std::uint64_t last_index = (first + table_clusters + blocks + behind) / per_block;
    const std::uint64_t needed_clusters = divide_up((last_index + 1) * 3 / 2 * 8, cluster_size);
    const std::uint64_t needed_blocks = last_index - first / per_block + 1;
    if (needed_clusters <= table_clusters && needed_blocks <= blocks) break;
    table_clusters = std::max(table_clusters, needed_clusters);
    blocks = std::max(blocks, needed_blocks);
  }
  if (table_clusters * cluster_size > most_table_bytes) {
    throw Error(EFBIG, "the refcount table would exceed 8 MiB, the largest that readers accept");
  }

  GrownTable plan;
  plan.offset = HostOffset(first << header_.cluster_bits);
  plan.clusters = static_cast<std::uint32_t>(table_clusters);
  plan.image = Buffer::zeroed((table_clusters + blocks) * cluster_size);
  for (std::size_t i = 0; i < table_.size(); ++i) store_be(plan.image.data() + i * 8, table_[i]);
  std::byte* const block_images = plan.image.data() + table_clusters * cluster_size;
  const HostOffset first_block = plan.offset + table_clusters * cluster_size;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const NewBlock block{first / per_block + i, first_block + i * cluster_size};
    plan.blocks.push_back(block);
    store_be(plan.image.data() + block.index * 8, block.offset.bytes());
  }
  for (std::uint64_t c = first; c < first + table_clusters + blocks; ++c) {
    std::byte* const image = block_images + (c / per_block - first / per_block) * cluster_size;
    store_count(image, c % per_block, 1);
  }
  return plan;
}

Task<void> Refcounts::write_blocks(std::vector<NewBlock> blocks) {
  if (!blocks.empty()) co_await file_.event(Event::refblock_alloc_write);
  auto images = cache_.dirty_images([&](HostOffset offset) {
    return std::ranges::any_of(blocks, [&](const NewBlock& block) {
      return offset >= block.offset && offset - block.offset < header_.cluster_size();
    });
  });
  co_await cache_.write(std::move(images));
}

Task<void> Refcounts::hook_blocks(std::vector<NewBlock> blocks) {
  for (const NewBlock& block : blocks) {
    Buffer entry(8);
    store_be(entry.data(), block.offset.bytes());
    co_await file_.event(Event::refblock_alloc_hookup);
    co_await file_.event(Event::reftable_update);
    const HostRange place{header_.refcount_table_offset + block.index * 8, entry.size()};
    const auto hit = guard_.find(place, Metadata::refcount_table);
    if (hit) co_await guard_.refuse(*hit, place);
    co_await file_.write(place.start, ConstIoVec(entry.span()));
  }
  std::erase_if(unhooked_, [&](const NewBlock& block) {
    return std::ranges::any_of(blocks,
                               [&](const NewBlock& done) { return done.index == block.index; });
  });
}

Task<void> Refcounts::write_dirty() {
  auto images = cache_.dirty_images([](HostOffset) { return true; });
  co_await cache_.write(std::move(images));
}

bool Refcounts::overlaps(HostRange range) const {
  if (range.overlaps(header_.refcount_table())) return true;
  return std::ranges::any_of(table_, [&](std::uint64_t block) {
    return block != 0 && range.overlaps({HostOffset(block), header_.cluster_size()});
  });
}

}  // namespace vise::qcow2
