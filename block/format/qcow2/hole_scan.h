// Finds the holes that earlier sessions have left between compressed clusters, in the background,
// from L2 tables alone.
#pragma once

#include <cstdint>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/flight.h"
#include "format/qcow2/refcounts.h"
#include "vise/child.h"
#include "vise/event_loop.h"
#include "vise/sync.h"
#include "vise/task.h"

namespace vise::qcow2 {

class Mapping;
class Space;

/// Which sectors of some host clusters compressed extents may reach into, and how many extents
/// touch each cluster.
class UseMap {
 public:
  /// Of host clusters [first, first + count).
  UseMap(std::uint64_t first, std::uint64_t count, unsigned cluster_bits);

  /// Host clusters whose map takes `bytes` of memory.
  static std::uint64_t clusters_in(std::uint64_t bytes, unsigned cluster_bits);

  std::uint64_t first() const { return first_; }
  std::uint64_t end() const { return first_ + references_.size(); }

  /// An extent of at most `extent.length` bytes; what of it lies outside is left out.
  void add(HostRange extent);
  /// Nothing is known of that cluster any more, whatever is added.
  void exclude(std::uint64_t cluster);
  /// How many extents touch the cluster; 0 if it is excluded.
  std::uint64_t references(std::uint64_t cluster) const;
  /// The bytes of the cluster that no extent reaches into, in stretches of at least `smallest`.
  std::vector<HostRange> holes(std::uint64_t cluster, std::uint64_t smallest) const;

 private:
  static constexpr std::uint32_t excluded = UINT32_MAX;
  bool is_used(std::uint64_t sector) const { return used_[sector]; }

  std::uint64_t first_;
  unsigned cluster_bits_;
  std::uint64_t sectors_;                  // per cluster
  std::vector<bool> used_;                 // by sector of the window
  std::vector<std::uint32_t> references_;  // by cluster of the window
};

/// A hole counts only where it is certain: the image's reference count of the host cluster is that
/// of the extents found in it, and has not changed since the search began. Everything that points
/// there, has pointed there until the disk forgets it, or is on its way there, is part of that
/// count; so all of it has been found, and the rest of the cluster is nobody's. The length of an
/// extent is known by sectors, rounded up, which keeps clear of the head of the next one.
class HoleScan {
 public:
  HoleScan(const Geometry& geometry, Child& file, Mapping& mapping, Refcounts& refcounts,
           Space& space, FlightRegister& flights, EventLoop& loop);

  /// Starts or continues the search if there is a need and something to find. Never suspends; to
  /// be called before a compressed write is given space.
  void start_if_due();
  /// Gives up what is under way. The next start_if_due() may begin again.
  Task<void> stop();
  /// Waits for what is under way.
  Task<void> idle() { return scope_.join(); }

 private:
  static constexpr std::uint64_t map_memory = 16u << 20;  // bytes
  static constexpr std::size_t most_holes = 64u << 10;    // remembered at a time

  bool is_over() const { return next_ >= round_end_; }
  void begin_round();
  Task<void> run();
  Task<void> search();
  Task<void> find_extents(UseMap& uses);
  void add_entries(std::span<const std::byte> entries, UseMap& uses) const;
  Task<void> publish(const UseMap& uses);

  const Geometry& geometry_;
  Child& file_;
  Mapping& mapping_;
  Refcounts& refcounts_;
  Space& space_;
  FlightRegister& flights_;
  EventLoop& loop_;

  // A round goes once over the file as it was at its beginning, one map after the other.
  std::uint64_t next_ = 0;       // host cluster
  std::uint64_t round_end_ = 0;  // host cluster
  bool stopping_ = false;
  TaskScope scope_;
};

}  // namespace vise::qcow2
