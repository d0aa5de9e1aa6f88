// A number for each host cluster of an image, for check: sparse, since a hostile or merely sparse
// file has many more clusters than metadata.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace vise::qcow2 {

/// Counts of clusters 0 … size() - 1, all 0 at first; and a mark for each, clear at first.
/// Needs 2 bytes and a bit per cluster where any of `chunk_clusters` neighbours counts.
class ClusterCounts {
 public:
  static constexpr std::uint64_t chunk_clusters = 512;

  explicit ClusterCounts(std::uint64_t clusters)
      : size_(clusters), chunks_((clusters + chunk_clusters - 1) / chunk_clusters) {}

  std::uint64_t size() const { return size_; }

  /// 0 beyond size().
  std::uint64_t get(std::uint64_t cluster) const {
    if (cluster >= size_) return 0;
    const Chunk* chunk = chunks_[cluster / chunk_clusters].get();
    if (chunk == nullptr) return 0;
    const std::uint16_t count = chunk->counts[cluster % chunk_clusters];
    return count == in_map ? large_.at(cluster) : count;
  }
  /// `cluster` < size().
  void set(std::uint64_t cluster, std::uint64_t count) {
    std::uint16_t& at = chunk(cluster).counts[cluster % chunk_clusters];
    if (at == in_map) large_.erase(cluster);
    at = count < in_map ? static_cast<std::uint16_t>(count) : in_map;
    if (at == in_map) large_[cluster] = count;
  }
  void add(std::uint64_t cluster, std::uint64_t count) {
    std::uint16_t& at = chunk(cluster).counts[cluster % chunk_clusters];
    if (at + count < in_map) {
      at = static_cast<std::uint16_t>(at + count);
    } else {
      set(cluster, get(cluster) + count);
    }
  }

  bool marked(std::uint64_t cluster) const {
    if (cluster >= size_) return false;
    const Chunk* chunk = chunks_[cluster / chunk_clusters].get();
    return chunk != nullptr &&
           (chunk->marks[cluster % chunk_clusters / 64] >> cluster % 64 & 1) != 0;
  }
  void mark(std::uint64_t cluster) {
    chunk(cluster).marks[cluster % chunk_clusters / 64] |= std::uint64_t{1} << cluster % 64;
  }

  /// True if no count of the chunk with that index was ever set.
  bool chunk_is_empty(std::uint64_t index) const { return chunks_[index] == nullptr; }
  std::uint64_t chunk_count() const { return chunks_.size(); }
  /// True if the chunk with that index certainly holds the same counts here and there.
  bool chunk_equals(const ClusterCounts& other, std::uint64_t index) const {
    const Chunk* here = chunks_[index].get();
    const Chunk* there = other.chunks_[index].get();
    if (here == nullptr || there == nullptr) return here == there;
    return here->counts == there->counts && large_.empty() && other.large_.empty();
  }

 private:
  static constexpr std::uint16_t in_map = UINT16_MAX;
  struct Chunk {
    std::array<std::uint16_t, chunk_clusters> counts{};
    std::array<std::uint64_t, chunk_clusters / 64> marks{};
  };
  Chunk& chunk(std::uint64_t cluster) {
    std::unique_ptr<Chunk>& at = chunks_[cluster / chunk_clusters];
    if (!at) at = std::make_unique<Chunk>();
    return *at;
  }

  std::uint64_t size_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
  std::unordered_map<std::uint64_t, std::uint64_t> large_;
};

}  // namespace vise::qcow2
