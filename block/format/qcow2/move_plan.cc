#include "format/qcow2/move_plan.h"

#include <algorithm>

namespace vise::qcow2 {

void MovePlan::add_compressed(const Descriptor& descriptor, std::uint64_t times) {
  const std::uint64_t start = descriptor.host.bytes();
  const std::uint64_t end = start + descriptor.stored_length;
  const std::uint64_t last = (end - 1) >> geometry_.cluster_bits;
  // Narrow refcounts fill a cluster, too: it holds no more extents than they can count.
  const std::uint64_t counted = std::min(times, max_count_) * units() / max_count_;
  for (std::uint64_t c = cluster_of(descriptor.host); c <= last && c < counts.size(); ++c) {
    const std::uint64_t from = std::max(start, c << geometry_.cluster_bits);
    std::uint64_t to = std::min(end, (c + 1) << geometry_.cluster_bits);
    // Where it ends in its last sector is not known: in the middle, on average.
    if (to == end) to -= std::min<std::uint64_t>(256, to - from - 1);
    fill_.add(c, std::max<std::uint64_t>({1, (to - from) / fill_unit, counted}));
    const std::uint64_t count = counts.get(c);
    counts.set(c, count - std::min(count, times));
  }
}

void MovePlan::add_shared_index(std::uint64_t l1_index) {
  if (l1_index >= shared_.size()) shared_.resize(l1_index + 1);
  shared_[l1_index] = true;
}

void MovePlan::add_table(HostRange table) {
  if (!table.empty() && cluster_of(table.start) != cluster_of(table.end() - 1)) {
    tables_.push_back(table);
  }
}

bool MovePlan::has_room(const std::optional<Outcome>& previous) {
  previous_ = previous;
  for (std::uint64_t chunk = 0; chunk < counts.chunk_count(); ++chunk) {
    if (counts.chunk_is_empty(chunk)) continue;
    const std::uint64_t first = chunk * ClusterCounts::chunk_clusters;
    for (std::uint64_t c = first; c < first + ClusterCounts::chunk_clusters; ++c) {
      const std::uint64_t fill = fill_.get(c);
      if (counts.get(c) == 0 && fill == 0) continue;
      ++outcome_.used;
      outcome_.end = c + 1;
      if (is_sparse(c)) saved_ += units() - fill;
    }
  }
  outcome_.repacked = previous && (previous->repacked || previous->repacks);
  return !outcome_.repacked && is_worth_repacking();
}

void MovePlan::weigh(const Descriptor& descriptor) {
  const std::uint64_t start = descriptor.host.bytes();
  const std::uint64_t end = start + descriptor.stored_length;
  bool moves = false;
  std::uint64_t elsewhere = 0;  // bytes
  for (std::uint64_t c = start >> geometry_.cluster_bits; c << geometry_.cluster_bits < end; ++c) {
    if (is_sparse(c)) {
      moves = true;
    } else {
      elsewhere += std::min(end, (c + 1) << geometry_.cluster_bits) -
                   std::max(start, c << geometry_.cluster_bits);
    }
  }
  if (moves) saved_ -= std::min(saved_, elsewhere / fill_unit);
}

// Where all ends that is no table of several clusters, if those which lie further back follow it.
std::uint64_t MovePlan::end_of_others() const {
  std::vector<HostRange> tables = tables_;
  std::ranges::sort(tables, std::ranges::greater(), &HostRange::end);
  std::uint64_t end = outcome_.used;
  for (const HostRange& table : tables) {
    const std::uint64_t last = cluster_of(table.end() - 1);
    if (last < end) break;
    end -= std::min(end, last - cluster_of(table.start) + 1);
  }
  return end;
}

bool MovePlan::choose() {
  Outcome& now = outcome_;
  now.repacks = !now.repacked && is_worth_repacking();
  if (now.repacks) {
    for (std::uint64_t c = 0; c < now.end; ++c) {
      if (is_sparse(c)) fill_.mark(c);
    }
    return true;
  }
  boundary_ = end_of_others();
  for (std::uint64_t c = now.used; c < now.end; ++c) {
    if (counts.get(c) != 0 || fill_.get(c) != 0) ++now.behind;
  }
  if (now.end <= now.used) return false;
  if (!previous_ || previous_->repacks) return true;
  // The end alone does not tell: the last cluster may have found no space yet, while all others
  // before it have.
  return now.end < previous_->end || now.behind < previous_->behind ||
         (now.end == previous_->end && now.used < previous_->used);
}

bool MovePlan::behind(const Descriptor& descriptor) const {
  if (!descriptor.has_host) return false;
  const std::uint64_t length =
      descriptor.compressed ? descriptor.stored_length : geometry_.cluster_size;
  return behind(HostRange{descriptor.host, length});
}

bool MovePlan::moves(const Descriptor& descriptor) const {
  if (!descriptor.compressed) return behind(descriptor);
  bool moves = false;
  const std::uint64_t last = cluster_of(descriptor.host + (descriptor.stored_length - 1));
  for (std::uint64_t c = cluster_of(descriptor.host); c <= last; ++c) {
    // The end may be overstated, and lie in a cluster that holds nothing of this one.
    if (c < counts.size() && !is_known(c)) return false;
    moves = moves || c >= boundary_ || fill_.marked(c);
  }
  return moves;
}

bool MovePlan::moves_alone(std::uint64_t l1_index, const Descriptor& descriptor) const {
  const bool is_own =
      descriptor.compressed ? l1_index >= shared_.size() || !shared_[l1_index] : descriptor.copied;
  return is_own && moves(descriptor);
}

}  // namespace vise::qcow2
