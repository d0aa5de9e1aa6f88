// What has to move so that an image file can become shorter: how full each host cluster is, and
// where the file could end.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "format/qcow2/cluster_counts.h"
#include "format/qcow2/descriptor.h"

namespace vise::qcow2 {

/// One round of moving. First, once, compressed clusters leave host clusters that are mostly
/// empty; then whatever lies behind the boundary, the number of clusters in use, moves in front
/// of it, where just as many are free. Tables of several clusters need them in a row, which are
/// hard to find among others: room for those is left right behind all else.
class MovePlan {
 public:
  /// For a file of so many clusters, in which compressed clusters may share a host cluster up to a
  /// count of `max_count`.
  MovePlan(const Geometry& geometry, std::uint64_t clusters, std::uint64_t max_count)
      : geometry_(geometry), max_count_(max_count), counts(clusters), fill_(clusters) {}

  // To be called when `counts` are those of the image.
  /// A compressed cluster that L2 entries name, `times` over all L1 tables.
  void add_compressed(const Descriptor& descriptor, std::uint64_t times = 1);
  /// Snapshots have an L2 table at this index of their L1 tables.
  void add_shared_index(std::uint64_t l1_index);
  /// A table that stays in one piece.
  void add_table(HostRange table);

  /// What the next round has to know of this one.
  struct Outcome {
    bool repacks = false;      // boundary() is none
    bool repacked = false;     // in a round before
    std::uint64_t used = 0;    // clusters
    std::uint64_t end = 0;     // the cluster behind the last one in use
    std::uint64_t behind = 0;  // clusters in use behind the first `used`
  };
  /// To be called when all has been added; `previous` is the outcome of the round before. True if
  /// there is so much room in host clusters that emptying them may be worth it: then weigh() is to
  /// be called with all compressed clusters once more.
  bool has_room(const std::optional<Outcome>& previous);
  /// Takes off what moving this one would leave behind as room in other host clusters.
  void weigh(const Descriptor& descriptor);
  /// Chooses. False if nothing is to move, or if the round before has not helped.
  bool choose();
  const Outcome& outcome() const { return outcome_; }

  /// True if this cluster is to move, whoever refers to it.
  bool moves(const Descriptor& descriptor) const;
  /// True if it is to move and surely belongs to the disk alone, of which it is an entry at that
  /// index of the active L1 table.
  bool moves_alone(std::uint64_t l1_index, const Descriptor& descriptor) const;
  /// True if it lies behind the boundary, so that it has to go further to the front.
  bool behind(const Descriptor& descriptor) const;
  bool behind(HostRange range) const {
    return !range.empty() && cluster_of(range.end() - 1) >= boundary_;
  }

  /// The host cluster from which on nothing is to be left but tables of several clusters;
  /// UINT64_MAX: this round only repacks.
  std::uint64_t boundary() const { return boundary_; }

 private:
  static constexpr std::uint64_t fill_unit = 64;  // bytes

  std::uint64_t cluster_of(HostOffset host) const { return host.bytes() >> geometry_.cluster_bits; }
  std::uint64_t units() const { return geometry_.cluster_size / fill_unit; }
  /// True if compressed clusters that were added account for its count.
  bool is_known(std::uint64_t cluster) const { return counts.get(cluster) == 0; }
  bool is_sparse(std::uint64_t cluster) const {
    const std::uint64_t fill = fill_.get(cluster);
    return fill > 0 && fill <= units() * 7 / 10 && is_known(cluster);
  }
  bool is_worth_repacking() const {
    const std::uint64_t clusters = saved_ / units();
    return clusters >= 2 && clusters >= outcome_.used / 64;
  }
  std::uint64_t end_of_others() const;

  const Geometry& geometry_;
  std::uint64_t max_count_;

 public:
  ClusterCounts counts;  // refcounts, to be filled in; what was added is taken off

 private:
  ClusterCounts fill_;             // by compressed clusters, in units; marked: to be emptied
  std::vector<bool> shared_;       // by L1 index
  std::vector<HostRange> tables_;  // of several clusters
  std::uint64_t boundary_ = UINT64_MAX;
  std::optional<Outcome> previous_;
  Outcome outcome_;
  std::uint64_t saved_ = 0;  // units that would be free if sparse clusters were packed
};

}  // namespace vise::qcow2
