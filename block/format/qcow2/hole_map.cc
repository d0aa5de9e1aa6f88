// Holes between compressed clusters: best fit.
#include "format/qcow2/hole_map.h"

#include <algorithm>
#include <cassert>

namespace vise::qcow2 {

void HoleMap::insert(std::uint64_t start, std::uint64_t length) {
  by_place_.emplace(start, length);
  by_size_.emplace(length, start);
  bytes_ += length;
}

void HoleMap::erase(std::map<std::uint64_t, std::uint64_t>::iterator hole) {
  bytes_ -= hole->second;
  by_size_.erase({hole->second, hole->first});
  by_place_.erase(hole);
}

void HoleMap::add(HostRange free) {
  std::uint64_t start = free.start.bytes();
  const std::uint64_t end_of_range = free.end().bytes();
  while (start < end_of_range) {
    const std::uint64_t cluster_end = ((start >> cluster_bits_) + 1) << cluster_bits_;
    std::uint64_t from = start;
    std::uint64_t to = std::min(end_of_range, cluster_end);
    start = to;
    const auto next = by_place_.lower_bound(from);
    if (next != by_place_.begin()) {
      const auto previous = std::prev(next);
      assert(previous->first + previous->second <= from && "freed twice");
      const bool joins = previous->first + previous->second == from &&
                         previous->first >> cluster_bits_ == from >> cluster_bits_;
      if (joins) {
        from = previous->first;
        erase(previous);
      }
    }
    const auto after = by_place_.lower_bound(to);
    if (after != by_place_.end() && after->first == to &&
        after->first >> cluster_bits_ == from >> cluster_bits_) {
      to += after->second;
      erase(after);
    }
    if (to - from >= smallest) insert(from, to - from);
  }
}

std::optional<HostOffset> HoleMap::take(std::uint64_t length) {
  const auto best = by_size_.lower_bound({length, 0});
  if (best == by_size_.end()) return std::nullopt;
  const auto [size, start] = *best;
  erase(by_place_.find(start));
  if (size - length >= smallest) insert(start + length, size - length);
  return HostOffset(start);
}

void HoleMap::forget_cluster(std::uint64_t cluster) {
  const std::uint64_t end = (cluster + 1) << cluster_bits_;
  for (auto hole = by_place_.lower_bound(cluster << cluster_bits_);
       hole != by_place_.end() && hole->first < end;) {
    erase(hole++);
  }
}

void HoleMap::forget_from(std::uint64_t cluster) {
  for (auto hole = by_place_.lower_bound(cluster << cluster_bits_); hole != by_place_.end();) {
    erase(hole++);
  }
}

}  // namespace vise::qcow2
