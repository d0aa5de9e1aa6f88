// Complete new refcount structures, behind everything else: for rebuilding and changing their
// width.
#pragma once

#include <cstdint>
#include <vector>

#include "format/qcow2/cluster_counts.h"
#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// What is new, in clusters: first a snapshot table where one is needed, then blocks, then table.
struct NewStructures {
  std::uint64_t start = 0;
  std::uint64_t snapshot_clusters = 0;
  std::vector<std::uint64_t> block_indexes;  // ascending
  std::uint64_t table_clusters = 0;

  std::uint64_t end() const {
    return start + snapshot_clusters + block_indexes.size() + table_clusters;
  }
  std::uint64_t block(std::size_t i) const { return start + snapshot_clusters + i; }
  std::uint64_t table() const { return block(block_indexes.size()); }
};

/// The blocks that have something to count, the new clusters from `start` on included, with the
/// refcount width of `h`. Throws Error(EFBIG) if the table would be too large.
NewStructures plan_structures(const Header& h, const ClusterCounts& references, std::uint64_t start,
                              std::uint64_t snapshot_clusters);

/// Writes blocks and table. Counts too large to store are stored as the largest possible.
Task<void> write_structures(Child& file, const Header& h, const ClusterCounts& references,
                            const NewStructures& plan);

}  // namespace vise::qcow2
