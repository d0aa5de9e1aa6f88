// Giving out space and taking it back.
#include "format/qcow2/space.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

#include <fmt/format.h>

#include "vise/error.h"

namespace vise::qcow2 {

Space::Space(const Geometry& geometry, Refcounts& refcounts, Child& file, FlightRegister& flights,
             const OrderRules& rules, OverlapGuard& guard)
    : geometry_(geometry),
      refcounts_(refcounts),
      file_(file),
      flights_(flights),
      rules_(rules),
      guard_(guard),
      holes_(geometry.cluster_bits) {}

// Where the counts say "free" of what is in use as metadata, nobody may write.
Task<Refcounts::Run> Space::take_free(std::uint64_t most) {
  const Refcounts::Run run = co_await refcounts_.take_free(most);
  const HostRange range{HostOffset(run.first << geometry_.cluster_bits),
                        run.count << geometry_.cluster_bits};
  if (const auto hit = guard_.find(range)) co_await guard_.refuse(*hit, range);
  co_return run;
}

Task<HostRange> Space::allocate_clusters(std::uint64_t most) {
  co_await file_.event(Event::cluster_alloc);
  if (is_reclaim_due()) co_await reclaim();
  while (!free_clusters_.empty()) {
    const auto [first, end] = free_clusters_.take_first();
    const std::uint64_t count = co_await refcounts_.take_run(first, std::min(most, end - first));
    // Nothing taken: the first of them is in use again (it was at the scan position, say).
    const std::uint64_t rest = first + std::max<std::uint64_t>(count, 1);
    if (rest < end) free_clusters_.add_run(rest, end);
    if (count > 0) {
      for (std::uint64_t i = 0; i < count; ++i) count_changes(first + i);
      co_return HostRange{HostOffset(first << geometry_.cluster_bits),
                          count << geometry_.cluster_bits};
    }
  }
  const Refcounts::Run run = co_await take_free(most);
  for (std::uint64_t i = 0; i < run.count; ++i) count_changes(run.first + i);
  co_return HostRange{HostOffset(run.first << geometry_.cluster_bits),
                      run.count << geometry_.cluster_bits};
}

Task<HostOffset> Space::allocate_cluster(std::uint64_t references) {
  const HostRange fresh = co_await allocate_clusters(1);
  if (references > 1) {
    const bool counted = co_await refcounts_.try_increase(cluster_of(fresh.start), references - 1);
    if (!counted) {
      free_unlinked(fresh);
      throw Error(EFBIG, fmt::format("{} references to one host cluster are too many for refcounts "
                                     "that end at {}",
                                     references, refcounts_.max_count()));
    }
    count_changes(cluster_of(fresh.start));
  }
  co_return fresh.start;
}

Task<Refcounts::Run> Space::take_long_run(std::uint64_t count) {
  const Refcounts::Run run = co_await refcounts_.take_behind_new_table(count);
  const HostRange range{HostOffset(run.first << geometry_.cluster_bits),
                        run.count << geometry_.cluster_bits};
  if (const auto hit = guard_.find(range)) co_await guard_.refuse(*hit, range);
  co_return run;
}

Task<HostRange> Space::allocate_contiguous(std::uint64_t count) {
  if (count == 1) co_return co_await allocate_clusters(1);  // wherever there is one
  HostRange range{HostOffset(0), 0};
  const std::uint64_t wanted = count << geometry_.cluster_bits;
  while (range.length < wanted) {
    // A row longer than one refcount block counts is not there to be found: blocks lie in between.
    Refcounts::Run run{0, 0};
    if (count > refcounts_.longest_run()) {
      run = co_await take_long_run(count);
    } else {
      run = co_await take_free((wanted - range.length) >> geometry_.cluster_bits);
    }
    const HostRange more{HostOffset(run.first << geometry_.cluster_bits),
                         run.count << geometry_.cluster_bits};
    note(more);
    if (range.length > 0 && range.end() == more.start) {
      range.length += more.length;
    } else {
      if (range.length > 0) free_unlinked(range);
      range = more;
    }
  }
  co_return range;
}

// Best fit among the holes, then behind the last extent, then a new cluster.
Task<HostOffset> Space::allocate_bytes(std::uint64_t length, Sharing sharing) {
  assert(length > 0 && length < geometry_.cluster_size);
  co_await file_.event(Event::cluster_alloc_bytes);
  std::optional<HostOffset> at;
  while (!at) {
    const std::optional<HostOffset> hole = holes_.take(length);
    lacks_holes_ = !hole;
    if (!hole) break;
    const bool shared = co_await share_cluster(cluster_of(*hole), sharing);
    if (shared) at = *hole;
  }
  if (!at) at = co_await append_bytes(length, sharing);
  if (at->bytes() >= geometry_.compressed_limit) {
    throw Error(EFBIG, "compressed data cannot be addressed that far into the image file");
  }
  // The bytes are not free when one of these entries has gone.
  const std::uint64_t last = cluster_of(*at + (length - 1));
  for (std::uint64_t c = cluster_of(*at); sharing.references > 1 && c <= last; ++c) {
    session_clusters_.remove(c);
  }
  co_return *at;
}

// Raises the count of a cluster that holds compressed bytes. False if it can hold no more extents,
// or if clusters have become free meanwhile: it may be one of them, and hold something else by now.
Task<bool> Space::share_cluster(std::uint64_t cluster, Sharing sharing) {
  const std::uint64_t freed_before = clusters_freed_;
  count_changes(cluster);
  const bool counted = co_await refcounts_.try_increase(cluster, sharing.references, sharing.most);
  count_changes(cluster);
  if (counted && clusters_freed_ != freed_before) {
    free_unlinked({HostOffset(cluster << geometry_.cluster_bits), 1}, sharing.references);
    co_return false;
  }
  co_return counted;
}

// Across the awaits, cursor_ stays what it is unless its cluster is freed, which resets it.
Task<HostOffset> Space::append_bytes(std::uint64_t length, Sharing sharing) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  std::optional<HostOffset> at;
  if (cursor_ && length <= cluster_size - geometry_.offset_in_cluster(cursor_->bytes())) {
    const HostOffset candidate = *cursor_;
    const bool shared = co_await share_cluster(cluster_of(candidate), sharing);
    if (shared) at = candidate;
  }
  if (!at) at = co_await append_to_fresh(length, sharing);
  const HostOffset end = *at + length;
  cursor_.reset();
  if (!end.is_aligned(cluster_size)) cursor_ = end;
  co_return *at;
}

// Behind the cluster of the cursor it continues there, else the rest of that one becomes a hole.
Task<HostOffset> Space::append_to_fresh(std::uint64_t length, Sharing sharing) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  HostOffset at = co_await allocate_cluster(sharing.references);
  session_clusters_.add(cluster_of(at));
  const auto room = [&] {
    return cursor_ ? cluster_size - geometry_.offset_in_cluster(cursor_->bytes()) : 0;
  };
  if (length > room() && cursor_ && cursor_->align_down(cluster_size) + cluster_size == at) {
    const HostOffset candidate = *cursor_;
    const bool shared = co_await share_cluster(cluster_of(candidate), sharing);
    if (shared) at = candidate;
  }
  const bool leaves_rest = cursor_ && *cursor_ != at && cluster_of(*cursor_) < packing_end_;
  if (leaves_rest) holes_.add({*cursor_, room()});
  co_return at;
}

void Space::free_later(const Descriptor& old, Reason reason) {
  if (!old.has_host || geometry_.data_file) return;
  HostRange range{old.host, geometry_.cluster_size};
  HostRange hole{old.host, 0};
  if (old.compressed) {
    range.length = old.stored_length;
    // Where in its last sector it ended is not known, and the next extent may start there.
    hole.length = old.stored_length > 512 ? old.stored_length - 512 : 0;
  }
  note(range);
  pending_.push_back(
      {cluster_of(range.start), cluster_of(range.end() - 1), flights_.next(), reason, hole});
  if (!rules_.unlink_before_free) became_stable(take_pending());
}

void Space::free_clusters_later(HostRange clusters, Reason reason) {
  note(clusters);
  pending_.push_back({cluster_of(clusters.start), cluster_of(clusters.end() - 1), flights_.next(),
                      reason, HostRange{clusters.start, 0}});
  if (!rules_.unlink_before_free) became_stable(take_pending());
}

void Space::note(HostRange clusters) const {
  if (changed_ == nullptr) return;
  const std::uint64_t last = cluster_of(clusters.end() - 1);
  for (std::uint64_t c = cluster_of(clusters.start); c <= last; ++c) changed_->add(c);
}

void Space::free_unlinked(HostRange clusters, std::uint64_t references) {
  note(clusters);
  const Freed freed{cluster_of(clusters.start), cluster_of(clusters.end() - 1), flights_.next(),
                    Reason::never_used, HostRange{clusters.start, 0}};
  stable_.insert(stable_.end(), references, freed);
}

void Space::became_stable(const std::vector<Freed>& freed) {
  stable_.insert(stable_.end(), freed.begin(), freed.end());
}

void Space::put_back(std::vector<Freed> freed) {
  freed.insert(freed.end(), pending_.begin(), pending_.end());
  pending_ = std::move(freed);
}

std::uint64_t Space::pending_bytes() const {
  std::uint64_t clusters = 0;
  for (const Freed& freed : pending_) clusters += freed.last - freed.first + 1;
  return clusters << geometry_.cluster_bits;
}

bool Space::is_reclaim_due() const {
  return !reclaiming_ && !stable_.empty() &&
         (!rules_.quarantine || flights_.ended_before(stable_.front().flight));
}

Task<void> Space::reclaim() {
  while (is_reclaim_due()) {
    const Freed freed = stable_.front();
    stable_.pop_front();
    reclaiming_ = true;
    std::exception_ptr failure;
    try {
      co_await give_back(freed);
    } catch (...) {
      failure = std::current_exception();  // the rest of it is a leak, which check finds
    }
    reclaiming_ = false;
    if (failure) std::rethrow_exception(failure);
  }
}

// From now on no compressed bytes go to this cluster.
void Space::abandon_cluster(std::uint64_t cluster) {
  ++clusters_freed_;
  if (cursor_ && cluster_of(*cursor_) == cluster) cursor_.reset();
  holes_.forget_cluster(cluster);
  session_clusters_.remove(cluster);
}

Task<void> Space::give_back(const Freed& freed) {
  co_await file_.event(Event::cluster_free);
  if (on_freed) {
    on_freed({HostOffset(freed.first << geometry_.cluster_bits), (freed.last - freed.first + 1)
                                                                     << geometry_.cluster_bits});
  }
  for (std::uint64_t cluster = freed.first; cluster <= freed.last; ++cluster) {
    const HostRange range{HostOffset(cluster << geometry_.cluster_bits), geometry_.cluster_size};
    // An entry that pointed there did so wrongly: better a leak than a free table.
    if (guard_.find(range)) continue;
    const bool discards = (freed.reason == Reason::discarded && discards_on_request) ||
                          (freed.reason == Reason::overwritten && discards_on_overwrite);
    if (discards && range.ends_by(file_.size())) {
      // While the count still says "in use", so that nobody writes there in the meantime.
      const std::uint64_t count = co_await refcounts_.get(cluster);
      if (count == 1) {
        abandon_cluster(cluster);
        co_await file_.discard(range);
      }
    }
    count_changes(cluster);
    const std::optional<std::uint64_t> left = co_await refcounts_.decrease(cluster);
    count_changes(cluster);
    if (!left) continue;
    if (*left > 0) {
      remember_hole(cluster, range.intersection(freed.hole));  // others live there
      continue;
    }
    became_free(cluster);
  }
}

// What was left is only known where all others are this session's: the length of an older extent
// may be overstated and reach into its neighbour. The rest is for the next search.
void Space::remember_hole(std::uint64_t cluster, HostRange hole) {
  if (hole.empty()) return;
  lost_bytes_ += 512;
  if (session_clusters_.contains(cluster)) {
    holes_.add(hole);
  } else {
    lost_bytes_ += hole.length;
  }
}

bool Space::take_round_due() {
  const std::uint64_t worth = std::max<std::uint64_t>(1u << 20, file_.size() / 16);
  if (lost_bytes_ < worth) return false;
  lost_bytes_ = 0;
  return true;
}

void Space::found_holes(std::uint64_t cluster, const std::vector<HostRange>& holes) {
  if (cursor_ && cluster_of(*cursor_) == cluster) return;  // its end is given out anyway
  if (cluster >= packing_end_) return;
  holes_.forget_cluster(cluster);
  for (const HostRange& hole : holes) holes_.add(hole);
}

void Space::became_free(std::uint64_t cluster) {
  abandon_cluster(cluster);
  refcounts_.cache().forget(
      {HostOffset(cluster << geometry_.cluster_bits), geometry_.cluster_size});
  // Those from the scan position on are found by the scan.
  if (cluster < refcounts_.scan_position()) free_clusters_.add(cluster);
}

void Space::stop_packing_from(std::uint64_t cluster) {
  if (cursor_ && cluster_of(*cursor_) >= cluster) cursor_.reset();
  holes_.forget_from(cluster);
  session_clusters_.cut(cluster);
  packing_end_ = cluster;
}

void Space::forget_free_from(std::uint64_t cluster) {
  free_clusters_.cut(cluster);
  refcounts_.rewind_scan(cluster);
}

void Space::forget_packing() {
  cursor_.reset();
  holes_.clear();
  session_clusters_.clear();
  lost_bytes_ = all_unknown;
  packing_end_ = UINT64_MAX;
}

}  // namespace vise::qcow2
