// New refcount structures from the references alone (qcow2.md 11.3). They are placed behind
// everything else, so that no byte of the old ones is needed or overwritten before the one header
// write that switches to them.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>

#include "format/qcow2/refcount_layout.h"
#include "format/qcow2/refcount_packing.h"
#include "format/qcow2/repair.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

NewStructures plan_structures(const Header& h, const ClusterCounts& references, std::uint64_t start,
                              std::uint64_t snapshot_clusters) {
  const std::uint64_t per_block = h.refcount_block_entries();
  std::set<std::uint64_t> indexes;
  for (std::uint64_t chunk = 0; chunk < references.chunk_count(); ++chunk) {
    if (references.chunk_is_empty(chunk)) continue;
    const std::uint64_t first = chunk * ClusterCounts::chunk_clusters;
    const std::uint64_t end = std::min(first + ClusterCounts::chunk_clusters, references.size());
    for (std::uint64_t c = first; c < end; ++c) {
      if (references.get(c) > 0) indexes.insert(c / per_block);
    }
  }
  NewStructures result;
  result.start = start;
  result.snapshot_clusters = snapshot_clusters;
  std::uint64_t covered = start;
  do {
    for (; covered < result.end(); ++covered) indexes.insert(covered / per_block);
    result.block_indexes.assign(indexes.begin(), indexes.end());
    const std::uint64_t last = indexes.empty() ? 0 : *indexes.rbegin();
    result.table_clusters = divide_up((last + 1) * 8, h.cluster_size());
  } while (covered < result.end());
  if (result.table_clusters > max_refcount_table_bytes >> h.cluster_bits) {
    throw Error(
        EFBIG, fmt::format("Refcount table of {} clusters is larger than {}", result.table_clusters,
                           max_refcount_table_bytes >> h.cluster_bits));
  }
  return result;
}

Task<void> write_structures(Child& file, const Header& h, const ClusterCounts& references,
                            const NewStructures& plan) {
  const std::uint64_t per_block = h.refcount_block_entries();
  Buffer table = Buffer::zeroed(plan.table_clusters << h.cluster_bits);
  for (std::size_t i = 0; i < plan.block_indexes.size(); ++i) {
    const std::uint64_t index = plan.block_indexes[i];
    Buffer block = Buffer::zeroed(h.cluster_size());
    for (std::uint64_t k = 0; k < per_block; ++k) {
      const std::uint64_t cluster = index * per_block + k;
      const bool is_new = cluster >= plan.start && cluster < plan.end();
      const std::uint64_t count = is_new ? 1 : references.get(cluster);
      // A count too large to store stays a finding; at its maximum nobody frees the cluster.
      if (count > 0) {
        store_refcount(block.data(), h.refcount_order, k, std::min(count, h.refcount_max()));
      }
    }
    const HostOffset at(plan.block(i) << h.cluster_bits);
    co_await file.write(at, ConstIoVec(block.span()));
    store_be(table.data() + index * 8, at.bytes());
  }
  co_await file.write(HostOffset(plan.table() << h.cluster_bits), ConstIoVec(table.span()));
}

void Repairer::forget_old_structures() {
  ClusterCounts& references = pass_.references;
  for (const HostRange& range : pass_.refcount_ranges) {
    if (range.empty()) continue;
    const std::uint64_t last = pass_.cluster_of(range.end() - 1);
    for (std::uint64_t c = pass_.cluster_of(range.start); c <= last; ++c) {
      // Not counted if the range was refused as lying beyond the end of the file.
      if (references.get(c) > 0) references.set(c, references.get(c) - 1);
    }
  }
}

Task<void> Repairer::rebuild() {
  report("Rebuilding refcount structure");
  forget_old_structures();
  const SnapshotTable& snapshots = pass_.snapshots;
  const bool new_snapshots = snapshots.short_extra + snapshots.excess_extra + snapshots.surplus > 0;
  const std::uint64_t snapshot_clusters =
      new_snapshots ? divide_up(snapshots.encode().size(), header_.cluster_size()) : 0;
  // The last reference may reach a little beyond the end of the file.
  const std::uint64_t start =
      pass_.file_clusters() + (pass_.references.get(pass_.file_clusters()) > 0 ? 1 : 0);
  const NewStructures structures =
      plan_structures(header_, pass_.references, start, snapshot_clusters);
  co_await file_.truncate(structures.end() << header_.cluster_bits);
  const HostOffset snapshots_at(structures.start << header_.cluster_bits);
  if (new_snapshots) co_await write_snapshot_table(snapshots_at);
  co_await write_structures(file_, header_, pass_.references, structures);

  std::array<std::byte, 12> field;
  BigEndianWriter out(field);
  out.u64(structures.table() << header_.cluster_bits);
  out.u32(static_cast<std::uint32_t>(structures.table_clusters));
  co_await write_header_field(field_offset::refcount_table, field);
  header_.refcount_table_offset = HostOffset(structures.table() << header_.cluster_bits);
  header_.refcount_table_clusters = static_cast<std::uint32_t>(structures.table_clusters);
  if (new_snapshots) co_await switch_snapshot_table(snapshots_at);

  corruptions_fixed += pass_.structure_faults;
  for (const CountChange& change : pass_.changes) {
    if (change.references > header_.refcount_max()) continue;
    ++(change.references > change.stored ? corruptions_fixed : leaks_fixed);
  }
  for (std::uint64_t c = 0; c < pass_.stored.size(); ++c) {
    if (pass_.stored.chunk_is_empty(c / ClusterCounts::chunk_clusters) &&
        pass_.references.chunk_is_empty(c / ClusterCounts::chunk_clusters)) {
      c |= ClusterCounts::chunk_clusters - 1;
      continue;
    }
    pass_.stored.set(c, std::min(pass_.references.get(c), header_.refcount_max()));
  }
}

Task<void> Repairer::write_snapshot_table(HostOffset at) {
  const std::vector<std::byte> table = pass_.snapshots.encode();
  if (!table.empty()) co_await file_.write(at, ConstIoVec(std::span(table)));
}

// The old table keeps its count until the next pass finds it leaked: it must not be free while the
// header names it.
Task<void> Repairer::switch_snapshot_table(HostOffset at) {
  const SnapshotTable& snapshots = pass_.snapshots;
  report("Rewriting the snapshot table");
  std::array<std::byte, 12> field;
  BigEndianWriter out(field);
  const auto count = static_cast<std::uint32_t>(snapshots.snapshots.size());
  if (count == 0) at = HostOffset(0);
  out.u32(count);
  out.u64(at.bytes());
  co_await write_header_field(field_offset::snapshots, field);
  header_.snapshot_count = count;
  header_.snapshots_offset = at;
  corruptions_fixed += snapshots.short_extra + snapshots.excess_extra + snapshots.surplus;
}

}  // namespace vise::qcow2
