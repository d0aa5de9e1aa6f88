// What has to move so that an image file can become shorter: how full each host cluster is, and
// where the file could end.
#pragma once

#include <cstdint>

#include "format/qcow2/cluster_counts.h"
#include "format/qcow2/descriptor.h"

namespace vise::qcow2 {

/// One round of moving. First, once, compressed clusters leave host clusters that are mostly
/// empty; then whatever lies behind the boundary, the number of clusters in use, moves in front
/// of it, where just as many are free.
class MovePlan {
 public:
  /// For a file of so many clusters.
  MovePlan(const Geometry& geometry, std::uint64_t clusters)
      : geometry_(geometry), counts(clusters), references_(clusters), fill_(clusters) {}

  /// A compressed cluster that an active L2 entry names.
  void add_compressed(const Descriptor& descriptor);

  /// To be called when `counts` are those of the image and all entries have been added: chooses.
  /// `previous` (may be null) is the plan of the round before. False if nothing is to move, or if
  /// that one has not helped.
  bool choose(const MovePlan* previous);

  /// True if the cluster that this active entry names is to move.
  bool moves(const Descriptor& descriptor) const;
  /// True if it lies behind the boundary, so that it has to go further to the front.
  bool behind(const Descriptor& descriptor) const;

  /// The host cluster from which on nothing is to be left; UINT64_MAX: this round only repacks.
  std::uint64_t boundary() const { return boundary_; }

 private:
  static constexpr std::uint64_t fill_unit = 64;  // bytes

  std::uint64_t cluster_of(HostOffset host) const { return host.bytes() >> geometry_.cluster_bits; }
  bool is_shared(std::uint64_t cluster) const {
    return counts.get(cluster) != references_.get(cluster);
  }
  void survey();

  const Geometry& geometry_;

 public:
  ClusterCounts counts;  // refcounts; to be filled in

 private:
  ClusterCounts references_;  // by compressed clusters of the active tables; marked: to be emptied
  ClusterCounts fill_;        // by compressed clusters, in units
  std::uint64_t boundary_ = UINT64_MAX;
  std::uint64_t used_ = 0;    // clusters
  std::uint64_t end_ = 0;     // the cluster behind the last one in use
  std::uint64_t sparse_ = 0;  // clusters to be emptied
  std::uint64_t saved_ = 0;   // units that would be free if these were packed
  bool repacks_ = false;
  bool repacked_ = false;  // in a round before
};

}  // namespace vise::qcow2
