// Free bytes inside host clusters that still hold other compressed clusters.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "vise/types.h"

namespace vise::qcow2 {

/// What compressed clusters leave behind when they are replaced, by size and by place. Holes never
/// cross a host cluster. Only bytes known to belong to nobody are ever added: not the last sector
/// of an extent whose end is only known by sectors, since its neighbour may start there.
class HoleMap {
 public:
  explicit HoleMap(unsigned cluster_bits) : cluster_bits_(cluster_bits) {}

  /// Adds free bytes, joining them with adjacent holes of the same host cluster.
  void add(HostRange free);
  /// Takes `length` bytes from the start of the smallest hole that has room for them.
  std::optional<HostOffset> take(std::uint64_t length);
  /// The host cluster is free as a whole, or nothing is known of it any more.
  void forget_cluster(std::uint64_t cluster);
  /// The same for all host clusters from `cluster` on.
  void forget_from(std::uint64_t cluster);

  void clear() {
    by_place_.clear();
    by_size_.clear();
    bytes_ = 0;
  }

  std::uint64_t bytes() const { return bytes_; }
  bool empty() const { return by_place_.empty(); }
  std::size_t count() const { return by_place_.size(); }

 private:
  /// Smaller holes cost more to remember than they are worth.
  static constexpr std::uint64_t smallest = 64;

  void insert(std::uint64_t start, std::uint64_t length);
  void erase(std::map<std::uint64_t, std::uint64_t>::iterator hole);

  unsigned cluster_bits_;
  std::map<std::uint64_t, std::uint64_t> by_place_;            // start → length
  std::set<std::pair<std::uint64_t, std::uint64_t>> by_size_;  // length, start
  std::uint64_t bytes_ = 0;
};

}  // namespace vise::qcow2
