// Space in the image file: where the next clusters and compressed bytes go, and when freed ones may
// be used again (the quarantine).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/flight.h"
#include "format/qcow2/header.h"
#include "format/qcow2/hole_map.h"
#include "format/qcow2/hole_scan.h"
#include "format/qcow2/overlap.h"
#include "format/qcow2/refcounts.h"
#include "format/qcow2/run_set.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// The write-order rules of commit.cc and, the last two, of relink.cc, each of which the crash
/// tests take out to see them fail.
struct OrderRules {
  bool data_before_l2 = true;  // with the counts: one sync serves both
  bool counts_before_l2 = true;
  bool unlink_before_free = true;
  bool quarantine = true;
  bool data_before_names = true;  // with the counts
  bool names_before_free = true;
};

class Space {
 public:
  Space(const Geometry& geometry, Refcounts& refcounts, Child& file, FlightRegister& flights,
        const OrderRules& rules, OverlapGuard& guard);

  /// Up to `most` contiguous host clusters, at least one, with count 1. The caller holds the turn
  /// (util/request_order.h), or nobody else allocates.
  Task<HostRange> allocate_clusters(std::uint64_t most);

  /// One cluster that so many entries will name. Throws Error(EFBIG) if a count cannot hold them.
  /// As above.
  Task<HostOffset> allocate_cluster(std::uint64_t references);

  /// Exactly `count` contiguous clusters, for tables.
  Task<HostRange> allocate_contiguous(std::uint64_t count);

  /// Room for `length` bytes (less than a cluster) of compressed data, packed behind the last ones
  /// where that is possible; the counts of the host clusters touched are raised. As above.
  struct Sharing {
    std::uint64_t references = 1;  // entries that will name the bytes
    std::uint64_t most =
        UINT64_MAX;  // no more are added to a host cluster that counts so many then
  };
  Task<HostOffset> allocate_bytes(std::uint64_t length, Sharing sharing);

  /// Where the next compressed bytes go if they fit there: the rest of that host cluster is free.
  std::optional<HostOffset> cursor() const { return cursor_; }

  /// Why something is freed, which decides whether the file's blocks are discarded with it.
  enum class Reason { overwritten, discarded, never_used };

  /// What `old` points to is no longer referenced by the L2 entry in memory. It is given back when
  /// that is stable and every request now in flight has ended.
  void free_later(const Descriptor& old, Reason reason);
  void free_clusters_later(HostRange clusters, Reason reason);
  /// For space that no entry on disk has ever referenced, counted `references` times: it waits for
  /// requests only.
  void free_unlinked(HostRange clusters, std::uint64_t references = 1);

  struct Freed {
    std::uint64_t first;   // host cluster
    std::uint64_t last;    // inclusive
    std::uint64_t flight;  // requests with smaller numbers may still use it
    Reason reason;
    HostRange hole;  // compressed: the bytes that surely belonged to it alone
  };
  /// Commit: takes what has been freed up to now …
  std::vector<Freed> take_pending() { return std::exchange(pending_, {}); }
  /// … and gives it back, stable or not.
  void became_stable(const std::vector<Freed>& freed);
  void put_back(std::vector<Freed> freed);

  /// Lowers the counts of what may be used again.
  Task<void> reclaim();

  /// The count of that cluster has become 0: it may be given out again.
  void became_free(std::uint64_t cluster);
  /// Snapshots have begun or ceased to share clusters: what was known of the use of single bytes
  /// holds no more.
  void forget_packing();
  /// No more compressed bytes go to clusters from this one on, as far as they are in use now.
  void stop_packing_from(std::uint64_t cluster);
  /// Clusters from this one on are looked for anew: the file has become shorter.
  void forget_free_from(std::uint64_t cluster);

  /// Compressed bytes were wanted that no known hole had room for.
  bool lacks_holes() const { return lacks_holes_; }
  /// True if so many bytes have become free unnoticed that a search is worth its while (all that
  /// earlier sessions have left, at first); they count anew from then on.
  bool take_round_due();
  const HoleMap& holes() const { return holes_; }
  /// Keeps `uses` (null: nothing) told of clusters whose counts change: they are excluded there.
  void watch(UseMap* uses) { watched_ = uses; }
  /// Adds to `changed` (null: nothing) every cluster whose count, or what refers to it, changes in
  /// memory from now on, before the disk changes.
  void note_changes(RunSet* changed) { changed_ = changed; }
  /// These bytes of a cluster, all others being in use, belong to nobody.
  void found_holes(std::uint64_t cluster, const std::vector<HostRange>& holes);

  /// Bytes that a commit would make usable again.
  std::uint64_t pending_bytes() const;
  bool has_pending() const { return !pending_.empty(); }
  bool is_reclaim_due() const;

  bool discards_on_request = false;    // pass-discard-request
  bool discards_on_overwrite = false;  // pass-discard-other
  /// Told about every range whose clusters are given back, for caches keyed by host offset.
  std::function<void(HostRange)> on_freed;

 private:
  std::uint64_t cluster_of(HostOffset offset) const {
    return offset.bytes() >> geometry_.cluster_bits;
  }
  Task<Refcounts::Run> take_free(std::uint64_t most);
  Task<Refcounts::Run> take_long_run(std::uint64_t count);
  Task<HostOffset> append_bytes(std::uint64_t length, Sharing sharing);
  Task<HostOffset> append_to_fresh(std::uint64_t length, Sharing sharing);
  Task<bool> share_cluster(std::uint64_t cluster, Sharing sharing);
  void abandon_cluster(std::uint64_t cluster);
  void count_changes(std::uint64_t cluster) {
    if (watched_ != nullptr) watched_->exclude(cluster);
    if (changed_ != nullptr) changed_->add(cluster);
  }
  void note(HostRange clusters) const;
  void remember_hole(std::uint64_t cluster, HostRange hole);
  Task<void> give_back(const Freed& freed);

  static constexpr std::uint64_t all_unknown = UINT64_MAX / 2;

  const Geometry& geometry_;
  Refcounts& refcounts_;
  Child& file_;
  FlightRegister& flights_;
  const OrderRules& rules_;
  OverlapGuard& guard_;

  // Byte after the last compressed extent, if the next one may go there: inside a host cluster
  // whose count is at least 1.
  std::optional<HostOffset> cursor_;
  RunSet free_clusters_;  // known to be free, below the scan position
  // Hold compressed clusters that this session alone has written, each for one entry: once that is
  // gone, its bytes are free.
  RunSet session_clusters_;
  HoleMap holes_;                           // inside session_clusters_ and where found_holes() said
  std::uint64_t packing_end_ = UINT64_MAX;  // no holes are looked for from that cluster on
  bool lacks_holes_ = false;
  std::uint64_t lost_bytes_ = all_unknown;  // freed and not in holes_, about
  UseMap* watched_ = nullptr;
  RunSet* changed_ = nullptr;
  std::vector<Freed> pending_;  // not stable yet
  std::deque<Freed> stable_;    // requests may still use it
  bool reclaiming_ = false;
  std::uint64_t clusters_freed_ = 0;  // counts calls of abandon_cluster()
};

}  // namespace vise::qcow2
