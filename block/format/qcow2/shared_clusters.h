// Plain data that L2 tables of snapshots refer to, alone or together with active ones: which L2
// entries have to change at once for a host cluster to be replaced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/shared_tables.h"

namespace vise::qcow2 {

/// A host cluster of data that can be replaced.
struct SharedCluster {
  HostOffset host;
  std::uint64_t references = 0;     // its count, if nothing but these entries refers to it
  std::uint32_t zero = 0;           // subclusters that read as zeros whatever it holds
  std::vector<HostOffset> entries;  // where the L2 entries lie, each once
};

/// Sorts the entries that one guest cluster has in several L2 tables by where they point to.
class SharedEntries {
 public:
  explicit SharedEntries(const Geometry& geometry) : geometry_(geometry) {}

  /// `entry` is what lies at `place`, in `table`. Throws Error(EIO) if it is corrupt.
  void add(const SharedTable& table, HostOffset place, std::span<const std::byte> entry);

  /// The host clusters that are complete without a backing image and hold data, which all entries
  /// agree on; but not what the disk owns alone. Starts anew.
  std::vector<SharedCluster> take();

 private:
  struct Candidate {
    SharedCluster cluster;
    bool fits = true;
  };
  bool is_data(const Descriptor& descriptor) const;

  const Geometry& geometry_;
  std::vector<Candidate> candidates_;
};

}  // namespace vise::qcow2
