#include "format/qcow2/move_plan.h"

#include <algorithm>

namespace vise::qcow2 {

void MovePlan::add_compressed(const Descriptor& descriptor) {
  const std::uint64_t start = descriptor.host.bytes();
  const std::uint64_t end = start + descriptor.stored_length;
  const std::uint64_t last = (end - 1) >> geometry_.cluster_bits;
  for (std::uint64_t c = cluster_of(descriptor.host); c <= last && c < counts.size(); ++c) {
    const std::uint64_t from = std::max(start, c << geometry_.cluster_bits);
    std::uint64_t to = std::min(end, (c + 1) << geometry_.cluster_bits);
    // Where it ends in its last sector is not known: in the middle, on average.
    if (to == end) to -= std::min<std::uint64_t>(256, to - from - 1);
    references_.add(c, 1);
    fill_.add(c, std::max<std::uint64_t>(1, (to - from) / fill_unit));
  }
}

void MovePlan::survey() {
  const std::uint64_t units = geometry_.cluster_size / fill_unit;
  for (std::uint64_t chunk = 0; chunk < counts.chunk_count(); ++chunk) {
    if (counts.chunk_is_empty(chunk)) continue;
    const std::uint64_t first = chunk * ClusterCounts::chunk_clusters;
    for (std::uint64_t c = first; c < first + ClusterCounts::chunk_clusters; ++c) {
      if (counts.get(c) == 0) continue;
      ++used_;
      end_ = c + 1;
      const std::uint64_t fill = fill_.get(c);
      if (references_.get(c) == 0 || is_shared(c) || fill > units * 7 / 10) continue;
      ++sparse_;
      saved_ += units - fill;
    }
  }
}

bool MovePlan::choose(const MovePlan* previous) {
  survey();
  const std::uint64_t saved_clusters = saved_ / (geometry_.cluster_size / fill_unit);
  repacked_ = previous != nullptr && (previous->repacked_ || previous->repacks_);
  repacks_ = !repacked_ && saved_clusters >= 2 && saved_clusters >= used_ / 64;
  if (repacks_) {
    const std::uint64_t units = geometry_.cluster_size / fill_unit;
    for (std::uint64_t c = 0; c < end_; ++c) {
      const bool empties =
          references_.get(c) > 0 && !is_shared(c) && fill_.get(c) <= units * 7 / 10;
      if (empties) references_.mark(c);
    }
    return true;
  }
  boundary_ = used_;
  if (end_ <= used_) return false;
  if (previous == nullptr || previous->repacks_) return true;
  return end_ < previous->end_ || (end_ == previous->end_ && used_ < previous->used_);
}

bool MovePlan::behind(const Descriptor& descriptor) const {
  if (!descriptor.has_host) return false;
  const std::uint64_t length =
      descriptor.compressed ? descriptor.stored_length : geometry_.cluster_size;
  return cluster_of(descriptor.host + (length - 1)) >= boundary_;
}

bool MovePlan::moves(const Descriptor& descriptor) const {
  if (!descriptor.has_host) return false;
  if (!descriptor.compressed) return descriptor.copied && behind(descriptor);
  bool moves = false;
  const std::uint64_t last = cluster_of(descriptor.host + (descriptor.stored_length - 1));
  for (std::uint64_t c = cluster_of(descriptor.host); c <= last; ++c) {
    // The end may be overstated, and lie in a cluster that holds nothing of this one.
    if (c < counts.size() && is_shared(c)) return false;
    moves = moves || c >= boundary_ || references_.marked(c);
  }
  return moves;
}

}  // namespace vise::qcow2
