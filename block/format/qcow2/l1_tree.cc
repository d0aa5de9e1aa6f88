#include "format/qcow2/l1_tree.h"

#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

void References::add(std::uint64_t cluster, std::uint32_t times) {
  const std::uint64_t index = cluster / chunk_clusters;
  if (last_ == nullptr || last_index_ != index) {
    std::unique_ptr<Chunk>& chunk = chunks_[index];
    if (!chunk) chunk = std::make_unique<Chunk>();
    last_ = chunk.get();
    last_index_ = index;
  }
  std::uint32_t& count = (*last_)[cluster % chunk_clusters];
  // So many that no refcount of up to 16 bits holds them; wider ones are only made to leak.
  count = count > UINT32_MAX - times ? UINT32_MAX : count + times;
}

void References::add(HostRange range, unsigned cluster_bits, std::uint32_t times) {
  if (range.empty()) return;
  const std::uint64_t last = (range.end() - 1).bytes() >> cluster_bits;
  for (std::uint64_t c = range.start.bytes() >> cluster_bits; c <= last; ++c) add(c, times);
}

Task<void> References::check_raise(Refcounts& counts) const {
  for (const auto& [index, chunk] : chunks_) {
    co_await counts.check_raise(index * chunk_clusters, *chunk);
  }
}

Task<void> References::raise(Refcounts& counts) const {
  for (const auto& [index, chunk] : chunks_) co_await counts.raise(index * chunk_clusters, *chunk);
}

Task<std::vector<std::uint64_t>> References::lower(Refcounts& counts) const {
  std::vector<std::uint64_t> freed;
  for (const auto& [index, chunk] : chunks_) {
    co_await counts.lower(index * chunk_clusters, *chunk, freed);
  }
  co_return freed;
}

L1Tree::L1Tree(Child& file, const Header& header, const Geometry& geometry,
               std::span<const std::uint64_t> l1, const OverlapGuard& guard)
    : file_(file), header_(header), geometry_(geometry), l1_(l1), guard_(guard) {}

// In order of their place, each once.
std::vector<L1Tree::Table> L1Tree::tables() const {
  std::vector<HostOffset> offsets;
  for (const std::uint64_t entry : l1_) {
    const HostOffset offset(entry & entry_offset_mask);
    if (offset.bytes() == 0) continue;
    if (!offset.is_aligned(geometry_.cluster_size)) {
      guard_.telling([&] {
        throw Error(EIO, fmt::format("the image is corrupt: an L1 entry points to {:#x}, which is "
                                     "not cluster-aligned",
                                     offset.bytes()));
      });
    }
    offsets.push_back(offset);
  }
  std::ranges::sort(offsets);
  std::vector<Table> tables;
  for (const HostOffset offset : offsets) {
    if (!tables.empty() && tables.back().offset == offset) {
      ++tables.back().times;
    } else {
      tables.push_back({offset, 1});
    }
  }
  return tables;
}

Task<References> L1Tree::references() {
  References found;
  Buffer bytes(geometry_.cluster_size);
  for (const Table& table : tables()) {
    co_await read_zero_extended(file_, table.offset, bytes.span());
    found.add(table.offset.bytes() >> geometry_.cluster_bits, table.times);
    count_entries(bytes.span(), table.times, found);
  }
  co_return found;
}

void L1Tree::count_entries(std::span<const std::byte> table, std::uint32_t times,
                           References& found) {
  for (std::size_t at = 0; at < table.size(); at += geometry_.l2_entry_size) {
    const auto word = load_be<std::uint64_t>(&table[at]);
    if (word == 0) continue;
    // Nothing of the second word matters here.
    const Descriptor d = guard_.telling([&] { return Descriptor::decode(word, 0, geometry_); });
    if (!d.has_host || geometry_.data_file) continue;
    if (d.compressed) {
      found.add({d.host, d.stored_length}, geometry_.cluster_bits, times);
    } else {
      found.add(d.host.bytes() >> geometry_.cluster_bits, times);
    }
  }
}

Task<void> L1Tree::clear_copied(const Refcounts& counts) {
  Buffer bytes(geometry_.cluster_size);
  for (const Table& table : tables()) {
    co_await read_zero_extended(file_, table.offset, bytes.span());
    if (!clear_entries(bytes.span())) continue;
    const HostRange range{table.offset, geometry_.cluster_size};
    if (counts.overlaps(range) || range.overlaps(header_.l1_table())) {
      throw Error(EIO, fmt::format("the image is corrupt: the L2 table at {:#x} lies in other "
                                   "metadata",
                                   table.offset.bytes()));
    }
    co_await file_.write(table.offset, ConstIoVec(bytes.span()));
  }
}

bool L1Tree::clear_entries(std::span<std::byte> table) const {
  bool changed = false;
  for (std::size_t at = 0; at < table.size(); at += geometry_.l2_entry_size) {
    const auto word = load_be<std::uint64_t>(&table[at]);
    if ((word & entry_compressed) != 0 || (word & entry_copied) == 0) continue;
    store_be(&table[at], word & ~entry_copied);
    changed = true;
  }
  return changed;
}

Task<bool> L1Tree::set_copied(Refcounts& counts, std::vector<std::uint64_t>& l1) {
  Buffer bytes(geometry_.cluster_size);
  std::vector<std::uint64_t> own;  // L2 tables with count 1
  for (const Table& table : tables()) {
    const std::uint64_t cluster = table.offset.bytes() >> geometry_.cluster_bits;
    const std::uint64_t count = co_await counts.get(cluster);
    // What a shared table points to is shared as well.
    if (count != 1) continue;
    own.push_back(table.offset.bytes());
    co_await read_zero_extended(file_, table.offset, bytes.span());
    const bool changed = co_await set_entries(counts, bytes.span());
    if (changed) co_await file_.write(table.offset, ConstIoVec(bytes.span()));
  }
  bool changed = false;
  for (std::uint64_t& entry : l1) {
    if ((entry & entry_copied) != 0) continue;
    if (!std::ranges::binary_search(own, entry & entry_offset_mask)) continue;
    entry |= entry_copied;
    changed = true;
  }
  co_return changed;
}

Task<bool> L1Tree::set_entries(Refcounts& counts, std::span<std::byte> table) {
  bool changed = false;
  for (std::size_t at = 0; at < table.size(); at += geometry_.l2_entry_size) {
    const auto word = load_be<std::uint64_t>(&table[at]);
    if ((word & (entry_compressed | entry_copied)) != 0) continue;
    const std::uint64_t offset = word & entry_offset_mask;
    if (offset == 0) continue;
    const std::uint64_t count = co_await counts.get(offset >> geometry_.cluster_bits);
    if (count != 1) continue;
    store_be(&table[at], word | entry_copied);
    changed = true;
  }
  co_return changed;
}

}  // namespace vise::qcow2
