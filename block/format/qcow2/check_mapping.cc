// L1 and L2 tables: every reference in them counted, every entry checked.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "format/qcow2/batch_reader.h"
#include "format/qcow2/check_pass.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/raw_entry.h"
#include "vise/buffer.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

Task<void> CheckPass::count_l1(HostRange table, Table kind, std::uint64_t times) {
  if (table.empty()) co_return;
  add_metadata(table, times);
  if (!table.ends_by(file_length_ + header_.cluster_size() - 1)) co_return;
  Buffer buffer(table.length);
  co_await read_zero_extended(file_, table.start, buffer.span());
  std::vector<L2Use> found;
  for (std::uint64_t i = 0; i < table.length / 8; ++i) {
    const auto entry = load_be<std::uint64_t>(buffer.data() + i * 8);
    if (entry != 0) count_l1_entry(entry, static_cast<std::uint32_t>(i), kind, times, found);
  }
  merge_l2_tables(std::move(found));
}

void CheckPass::count_l1_entry(std::uint64_t entry, std::uint32_t index, Table kind,
                               std::uint64_t times, std::vector<L2Use>& found) {
  if ((entry & raw_entry::l1_reserved) != 0) {
    corruption(fmt::format("found L1 entry with reserved bits set: {:x}", entry));
  }
  const HostOffset offset(entry & raw_entry::offset_mask);
  if (offset.bytes() == 0) return;
  const bool inside = add_reference({offset, header_.cluster_size()}, times);
  if (!offset.is_aligned(header_.cluster_size())) {
    corruption(fmt::format("l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                           offset.bytes()));
  } else if (inside) {
    L2Use use;
    use.offset = offset;
    use.l1_index = index;
    use.active = kind == Table::active ? 1 : 0;
    use.total = times;
    found.push_back(use);
  }
  if (kind == Table::snapshot || copied_ == Copied::later) return;
  if (copied_is_wrong(entry)) {
    const std::uint64_t cluster = cluster_of(offset);
    corruption(fmt::format("OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={}", index,
                           entry, stored.get(cluster)),
               {cluster, cluster});
  }
}

bool CheckPass::copied_is_wrong(std::uint64_t word) const {
  const std::uint64_t cluster = cluster_of(HostOffset(word & raw_entry::offset_mask));
  const bool copied = (word & raw_entry::copied) != 0;
  return !count_is_unknown(cluster) && (stored.get(cluster) == 1) != copied;
}

// One entry per table, however many L1 entries lead there: a table is visited once, even if every
// entry of every L1 table names it.
void CheckPass::merge_l2_tables(std::vector<L2Use> found) {
  l2_tables.insert(l2_tables.end(), found.begin(), found.end());
  // Stable: the index kept is the first of the active table, which is read first.
  std::ranges::stable_sort(l2_tables, {}, &L2Use::offset);
  auto kept = l2_tables.begin();
  for (auto it = l2_tables.begin(); it != l2_tables.end(); ++it) {
    if (it != l2_tables.begin() && it->offset == kept->offset) {
      kept->active += it->active;
      kept->total += it->total;
    } else {
      if (it != l2_tables.begin()) ++kept;
      *kept = *it;
    }
  }
  if (!l2_tables.empty()) l2_tables.erase(kept + 1, l2_tables.end());
}

Task<void> CheckPass::count_l2_tables() {
  std::vector<HostOffset> offsets;
  offsets.reserve(l2_tables.size());
  for (const L2Use& use : l2_tables) {
    const std::uint64_t cluster = cluster_of(use.offset);
    if (references.marked(cluster)) {
      corruption(
          fmt::format("L2 table at {:#x} lies in a cluster of other metadata", use.offset.bytes()),
          {cluster, cluster});
    }
    references.mark(cluster);
    offsets.push_back(use.offset);
  }
  BatchReader reader(file_, header_.cluster_size(), offsets);
  std::size_t visited = 0;
  BatchReader::Visit visit = [&](std::size_t i, std::span<const std::byte> table) {
    visit_l2(l2_tables[i], table);
    ++visited;
    if (request_.on_progress && !request_.data) {
      request_.on_progress(static_cast<double>(visited) / static_cast<double>(l2_tables.size()));
    }
  };
  BatchReader::Fail fail = [&](std::size_t i, const std::string& error) {
    ++result.check_errors;
    incomplete = true;
    report(fmt::format("ERROR L2 table at {:#x}: {}", l2_tables[i].offset.bytes(), error));
  };
  co_await reader.run(std::move(visit), std::move(fail));
}

struct CheckPass::Entry {
  std::uint64_t word;
  std::uint64_t bitmap;  // 0 without extended L2
  std::uint64_t index;
  const L2Use& use;
};

void CheckPass::visit_l2(const L2Use& use, std::span<const std::byte> table) {
  const unsigned entry_size = header_.l2_entry_size();
  const bool extended = header_.extended_l2();
  next_contiguous_ = 0;
  for (std::uint64_t i = 0; i < header_.l2_entries(); ++i) {
    const std::byte* at = table.data() + i * entry_size;
    const auto word = load_be<std::uint64_t>(at);
    const std::uint64_t bitmap = extended ? load_be<std::uint64_t>(at + 8) : 0;
    if ((word | bitmap) == 0) continue;
    const Entry entry{word, bitmap, i, use};
    if ((word & raw_entry::compressed) != 0) {
      visit_compressed(entry);
    } else {
      visit_standard(entry);
    }
  }
}

void CheckPass::visit_compressed(const Entry& e) {
  const HostRange range = raw_entry::compressed_range(e.word, header_.cluster_bits);
  if ((e.word & raw_entry::copied) != 0) {
    corruption(fmt::format("coffset={:#x}: copied flag must never be set for compressed clusters",
                           range.start.bytes()));
  }
  if (e.bitmap != 0) {
    corruption(fmt::format("compressed cluster {} with non-zero subcluster bitmap {:x}", e.index,
                           e.bitmap));
  }
  result.allocated_clusters += e.use.active;
  result.compressed_clusters += e.use.active;
  result.fragmented_clusters += e.use.active;
  if (header_.has_data_file()) {
    corruption(
        fmt::format("compressed cluster {} in an image with an external data file", e.index));
    return;
  }
  if (add_reference(range, e.use.total)) check_not_metadata(range, e.word);
}

void CheckPass::visit_standard(const Entry& e) {
  const bool extended = header_.extended_l2();
  if ((e.word & raw_entry::l2_reserved) != 0) {
    corruption(fmt::format("found l2 entry with reserved bits set: {:x}", e.word));
  }
  const std::uint64_t offset = e.word & raw_entry::offset_mask;
  const bool owns = offset != 0 || (header_.has_data_file() && (e.word & raw_entry::copied) != 0);
  if (extended) {
    const auto allocated = static_cast<std::uint32_t>(e.bitmap);
    const auto zero = static_cast<std::uint32_t>(e.bitmap >> 32);
    if ((allocated & zero) != 0 || (allocated != 0 && !owns)) {
      corruption(
          fmt::format("L2 entry {:x} has the invalid subcluster bitmap {:x}", e.word, e.bitmap));
    }
  }
  if (!owns) return;

  result.allocated_clusters += e.use.active;
  if (next_contiguous_ != 0 && offset != next_contiguous_) {
    result.fragmented_clusters += e.use.active;
  }
  next_contiguous_ = offset + header_.cluster_size();
  if (header_.has_data_file()) {
    check_data_file_entry(e);
  } else {
    visit_host_cluster(e);
  }
}

void CheckPass::visit_host_cluster(const Entry& e) {
  const HostRange range{HostOffset(e.word & raw_entry::offset_mask), header_.cluster_size()};
  if (!range.start.is_aligned(header_.cluster_size())) {
    const bool without_data = header_.extended_l2() ? static_cast<std::uint32_t>(e.bitmap) == 0
                                                    : (e.word & raw_entry::zero) != 0;
    const char* what = without_data ? "Preallocated" : "Data";
    corruption(fmt::format("offset={:x}: {} cluster is not properly aligned; L2 entry corrupted",
                           range.start.bytes(), what));
    if (without_data && request_.repair == Repair::all) {
      // Nothing is lost with the place of a cluster that nobody reads.
      const HostOffset at = e.use.offset + e.index * header_.l2_entry_size();
      unaligned_zeroes.push_back({at, header_.extended_l2() ? 0 : raw_entry::zero});
      return;
    }
  }
  if (add_reference(range, e.use.total)) check_not_metadata(range, e.word);
  if (e.use.active == 0 || copied_ == Copied::later) return;
  if (copied_is_wrong(e.word)) {
    const std::uint64_t cluster = cluster_of(range.start);
    corruption(fmt::format("OFLAG_COPIED data cluster: l2_entry={:x} refcount={}", e.word,
                           stored.get(cluster)),
               {cluster, cluster});
  }
}

// Guest clusters of a data file lie where the guest sees them, and nobody else uses them.
void CheckPass::check_data_file_entry(const Entry& e) {
  const std::uint64_t guest = (e.use.l1_index * header_.l2_entries() + e.index)
                              << header_.cluster_bits;
  const std::uint64_t offset = e.word & raw_entry::offset_mask;
  if (e.use.active > 0 && offset != guest) {
    corruption(fmt::format("data cluster of guest offset {:#x} is at {:#x} of the data file", guest,
                           offset));
  }
  if (e.use.active == 0 || copied_ == Copied::later) return;
  if ((e.word & raw_entry::copied) == 0) {
    corruption(fmt::format("OFLAG_COPIED data cluster: l2_entry={:x} in a data file", e.word));
  }
}

// The guest could read metadata, or destroy it.
void CheckPass::check_not_metadata(HostRange range, std::uint64_t word) {
  const std::uint64_t last = cluster_of(range.end() - 1);
  for (std::uint64_t c = cluster_of(range.start); c <= last; ++c) {
    if (!references.marked(c)) continue;
    corruption(fmt::format("l2_entry={:x}: guest data in the metadata cluster {}", word, c),
               {c, c});
    return;
  }
}

}  // namespace vise::qcow2
