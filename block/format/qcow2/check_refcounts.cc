// The stored refcounts: read, and compared with the references counted.
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "format/qcow2/batch_reader.h"
#include "format/qcow2/check_pass.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/refcount_packing.h"
#include "vise/buffer.h"
#include "vise/event_loop.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t reserved_bits = 0x1ff;

}  // namespace

void CheckPass::structure_fault(const std::string& text) {
  corruption(text);
  ++structure_faults;
  needs_rebuild = true;
}

Task<void> CheckPass::load_refcounts() {
  const HostRange table = header_.refcount_table();
  Buffer buffer(table.length);
  co_await read_zero_extended(file_, table.start, buffer.span());
  refcount_table.resize(table.length / 8);
  for (std::size_t i = 0; i < refcount_table.size(); ++i) {
    refcount_table[i] = load_be<std::uint64_t>(buffer.data() + i * 8);
  }
  if (header_.refcount_table_clusters == 0) {
    structure_fault("image has no refcount table");
  }
  add_metadata(table);
  refcount_ranges.push_back(table);

  // Those with reserved bits set are read, but not counted as refcount blocks.
  const std::vector<std::uint64_t> indexes = check_refcount_table();
  std::vector<HostOffset> offsets;
  for (const std::uint64_t index : indexes) {
    offsets.push_back(HostOffset(refcount_table[index] & ~reserved_bits));
  }
  BatchReader reader(file_, header_.cluster_size(), offsets);
  BatchReader::Visit visit = [&](std::size_t i, std::span<const std::byte> block) {
    load_block(indexes[i], block);
  };
  BatchReader::Fail fail = [&](std::size_t i, const std::string& error) {
    ++result.check_errors;
    unknown_blocks_.push_back(indexes[i]);
    report(fmt::format("ERROR refcount block {}: {}", indexes[i], error));
  };
  co_await reader.run(std::move(visit), std::move(fail));
  std::ranges::sort(unknown_blocks_);
}

// Sorts out the entries. Returns the indexes of the blocks that can be read and count clusters of
// the file.
std::vector<std::uint64_t> CheckPass::check_refcount_table() {
  std::vector<std::uint64_t> readable;
  for (std::uint64_t i = 0; i < refcount_table.size(); ++i) {
    const std::uint64_t entry = refcount_table[i];
    const HostOffset offset(entry & ~reserved_bits);
    const bool counts_file = i < divide_up(file_clusters_ + 1, header_.refcount_block_entries());
    if (entry == 0) continue;
    bool sound = true;
    if ((entry & reserved_bits) != 0) {
      structure_fault(fmt::format("refcount table entry {} has reserved bits set", i));
      sound = false;
    }
    if (!offset.is_aligned(header_.cluster_size())) {
      structure_fault(
          fmt::format("refcount block {} is not cluster aligned; refcount table entry "
                      "corrupted",
                      i));
      if (counts_file) ++result.check_errors;
      unknown_blocks_.push_back(i);
      continue;
    }
    if (cluster_of(offset) >= file_clusters_) {
      structure_fault(fmt::format("refcount block {} is outside image", i));
      sound = false;
    } else if (counts_file) {
      readable.push_back(i);
    }
    if (sound) {
      const HostRange block{offset, header_.cluster_size()};
      add_metadata(block);
      refcount_ranges.push_back(block);
      block_indexes_.push_back(i);
      block_offsets_.push_back(offset);
    }
  }
  return readable;
}

void CheckPass::load_block(std::uint64_t index, std::span<const std::byte> block) {
  const std::uint64_t first = index * header_.refcount_block_entries();
  const std::uint64_t count =
      std::min(header_.refcount_block_entries(), stored.size() - std::min(stored.size(), first));
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t refcount = load_refcount(block.data(), header_.refcount_order, i);
    if (refcount != 0) stored.set(first + i, refcount);
  }
}

// A refcount block that is anything else besides would change with that.
void CheckPass::check_blocks() {
  std::set<std::uint64_t> reported;
  for (std::size_t i = 0; i < block_indexes_.size(); ++i) {
    const std::uint64_t count = references.get(cluster_of(block_offsets_[i]));
    if (count == 1) continue;
    // Two entries for one block are one fault.
    if (!reported.insert(block_offsets_[i].bytes()).second) continue;
    structure_fault(fmt::format("refcount block {} refcount={}", block_indexes_[i], count));
  }
}

// In steps, as others may be waiting for the loop.
Task<void> CheckPass::compare() {
  constexpr std::uint64_t chunks_at_once = 64;
  for (std::uint64_t chunk = 0; chunk < references.chunk_count(); ++chunk) {
    if (chunk % chunks_at_once == 0) co_await EventLoop::current().yield();
    const std::uint64_t first = chunk * ClusterCounts::chunk_clusters;
    const std::uint64_t end = std::min(first + ClusterCounts::chunk_clusters, references.size());
    if (references.chunk_is_empty(chunk) && stored.chunk_is_empty(chunk)) continue;
    for (std::uint64_t c = end; c > first; --c) {
      const bool inside = c - 1 < file_clusters_;
      if (references.get(c - 1) == 0 && (!inside || stored.get(c - 1) == 0)) continue;
      result.image_end_offset = c << header_.cluster_bits;
      break;
    }
    if (references.chunk_equals(stored, chunk)) continue;
    for (std::uint64_t c = first; c < end; ++c) compare_cluster(c);
  }
}

bool CheckPass::count_is_unknown(std::uint64_t cluster) const {
  return !unknown_blocks_.empty() &&
         std::ranges::binary_search(unknown_blocks_, cluster / header_.refcount_block_entries());
}

void CheckPass::compare_cluster(std::uint64_t cluster) {
  const std::uint64_t count = stored.get(cluster);
  const std::uint64_t expected = references.get(cluster);
  if (count == expected) return;
  // The end of the file lies before this one: nobody looks at its count until it is allocated.
  if (cluster >= file_clusters_ && expected == 0) return;
  if (count_is_unknown(cluster)) return;
  changes.push_back({cluster, count, expected});
  if (count > expected) {
    ++result.leaks;
    report(fmt::format("Leaked cluster {} refcount={} reference={}", cluster, count, expected));
  } else {
    corruption(fmt::format("cluster {} refcount={} reference={}", cluster, count, expected),
               {cluster, cluster});
    if (count == 0) needs_rebuild = true;
  }
}

}  // namespace vise::qcow2
