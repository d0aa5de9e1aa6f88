#include "format/qcow2/create_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "format/qcow2/refcount_packing.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t copied = std::uint64_t{1} << 63;

// Refcount blocks and table for `others` clusters besides their own: the smallest fixed point.
void size_refcounts(CreateLayout& layout, const Header& h, std::uint64_t others) {
  const std::uint64_t entries_per_cluster = h.cluster_size() / 8;
  std::uint64_t before = 0;
  layout.table_clusters = 1;
  layout.blocks = 1;
  do {
    before = layout.table_clusters + layout.blocks;
    layout.blocks = divide_up(others + before, h.refcount_block_entries());
    layout.table_clusters = divide_up(layout.blocks, entries_per_cluster);
  } while (layout.table_clusters + layout.blocks != before);
  layout.clusters = others + before;
  if (layout.table_clusters > max_refcount_table_bytes >> h.cluster_bits) {
    throw Error(EFBIG, fmt::format("Reference counts for {} clusters of {} bytes need a larger "
                                   "table than the {} bytes allowed",
                                   layout.clusters, h.cluster_size(), max_refcount_table_bytes));
  }
}

}  // namespace

CreateLayout CreateLayout::make(Header& h, Kind kind) {
  CreateLayout layout;
  layout.l1_clusters = divide_up(std::uint64_t{h.l1_entries} * 8, h.cluster_size());
  if (kind == Kind::preallocated) {
    layout.mapped_clusters = divide_up(h.virtual_size, h.cluster_size());
    if (!h.has_data_file()) layout.data_clusters = layout.mapped_clusters;
    layout.l2_tables = h.l1_entries;
  }
  size_refcounts(layout, h, 1 + layout.l1_clusters + layout.l2_tables + layout.data_clusters);

  const bool as_qemu = kind == Kind::plain && layout.table_clusters == 1;
  layout.first_blocks = as_qemu ? 1 : layout.blocks;
  layout.l1 = 1 + layout.table_clusters + layout.first_blocks;
  layout.l2 = layout.l1 + layout.l1_clusters;
  layout.data = layout.l2 + layout.l2_tables;
  layout.self_block = layout.l2 / h.refcount_block_entries();

  // QEMU leaves the offset of an L1 table without entries at 0.
  h.l1_offset = HostOffset(h.l1_entries > 0 ? layout.l1 << h.cluster_bits : 0);
  h.refcount_table_offset = HostOffset(h.cluster_size());
  h.refcount_table_clusters = static_cast<std::uint32_t>(layout.table_clusters);
  return layout;
}

// Behind the L1 table QEMU first needs block 1, then the block that counts that one, then the rest
// in order. These two functions are each other's inverse.
std::uint64_t CreateLayout::block(std::uint64_t index) const {
  if (index < first_blocks) return 1 + table_clusters + index;
  std::uint64_t place = index - 1;
  if (index == self_block && index > 1) {
    place = 1;
  } else if (index > 1 && index < self_block) {
    place = index;
  }
  return l1 + l1_clusters + place;
}

std::uint64_t CreateLayout::block_behind_l1(std::uint64_t cluster) const {
  const std::uint64_t place = cluster - l1 - l1_clusters;
  if (place == 1 && self_block > 1) return self_block;
  return place > 1 && place < self_block ? place : place + 1;
}

std::uint64_t CreateLayout::file_length(const Header& h) const {
  const bool ends_in_l1 = l1 + l1_clusters == clusters;
  return ends_in_l1 ? (l1 << h.cluster_bits) + std::uint64_t{h.l1_entries} * 8
                    : clusters << h.cluster_bits;
}

namespace {

void fill_table(const CreateLayout& layout, const Header& h, std::uint64_t first,
                std::span<std::byte> bytes) {
  for (std::uint64_t i = 0; i < bytes.size() / 8 && first + i < layout.blocks; ++i) {
    store_be(&bytes[i * 8], layout.block(first + i) << h.cluster_bits);
  }
}

void fill_block(const CreateLayout& layout, const Header& h, std::uint64_t index,
                std::span<std::byte> bytes) {
  const std::uint64_t first = index * h.refcount_block_entries();
  const std::uint64_t used = std::min(h.refcount_block_entries(), layout.clusters - first);
  for (std::uint64_t i = 0; i < used; ++i) store_refcount(bytes.data(), h.refcount_order, i, 1);
}

void fill_l1(const CreateLayout& layout, const Header& h, std::uint64_t first,
             std::span<std::byte> bytes) {
  for (std::uint64_t i = 0; i < bytes.size() / 8 && first + i < layout.l2_tables; ++i) {
    store_be(&bytes[i * 8], (layout.l2 + first + i) << h.cluster_bits | copied);
  }
}

// With extended L2 the second word stays 0: space without data, so that a backing file is seen.
void fill_l2(const CreateLayout& layout, const Header& h, std::uint64_t table,
             std::span<std::byte> bytes) {
  const std::uint64_t first = table * h.l2_entries();
  const std::uint64_t used = std::min(h.l2_entries(), layout.mapped_clusters - first);
  const std::uint64_t data = h.has_data_file() ? 0 : layout.data;  // there, at the guest's offset
  for (std::uint64_t i = 0; i < used; ++i) {
    store_be(&bytes[i * h.l2_entry_size()], (data + first + i) << h.cluster_bits | copied);
  }
}

}  // namespace

void CreateLayout::fill(const Header& h, std::uint64_t cluster, std::span<std::byte> bytes) const {
  const std::uint64_t entries_per_cluster = bytes.size() / 8;
  if (cluster <= table_clusters) {
    fill_table(*this, h, (cluster - 1) * entries_per_cluster, bytes);
  } else if (cluster < l1) {
    fill_block(*this, h, cluster - 1 - table_clusters, bytes);
  } else if (cluster < l1 + l1_clusters) {
    fill_l1(*this, h, (cluster - l1) * entries_per_cluster, bytes);
  } else if (first_blocks < blocks) {
    fill_block(*this, h, block_behind_l1(cluster), bytes);
  } else {
    fill_l2(*this, h, cluster - l2, bytes);
  }
}

}  // namespace vise::qcow2
