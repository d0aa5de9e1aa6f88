// Compressing clusters on the worker pool, for new data and for data that is there already.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "codec/codec.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/buffer.h"

namespace vise::qcow2 {

/// Compresses clusters on the worker pool.
class Qcow2::CompressJob {
 public:
  /// `drops_zeroes`: an entry can say that a cluster is all zeros, so those need not be stored.
  CompressJob(const Geometry& geometry, Codec codec, int level, bool drops_zeroes, ConstIoVec data)
      : geometry_(geometry),
        codec_(codec),
        level_(level),
        drops_zeroes_(drops_zeroes),
        data_(data),
        clusters((data.size() + geometry.cluster_size - 1) >> geometry.cluster_bits),
        output_(clusters.size() << geometry.cluster_bits) {}

  void compress(std::size_t i) {
    const std::uint64_t cluster_size = geometry_.cluster_size;
    const std::uint64_t from = i * cluster_size;
    const ConstIoVec part = data_.slice(from, std::min(cluster_size, data_.size() - from));
    StoredCluster& cluster = clusters[i];
    if (drops_zeroes_ && is_zero(part)) {
      cluster.kind = StoredCluster::Kind::zero;
      return;
    }
    const std::span<std::byte> room = output_.span().subspan(from, cluster_size);
    std::span<const std::byte> input;
    Buffer gathered;
    if (part.size() == cluster_size && part.is_contiguous()) {
      input = part.contiguous();
    } else {
      // In pieces, or the last cluster of the disk, which is filled up with zeros.
      gathered = Buffer(cluster_size);
      part.copy_to(gathered.first(part.size()));
      std::ranges::fill(gathered.span().subspan(part.size()), std::byte{0});
      input = gathered.span();
    }
    // One byte less than a cluster: what does not shrink is stored as it is.
    const std::size_t stored = codec::compress(codec_, level_, input, room.first(cluster_size - 1));
    if (stored > 0) {
      cluster.kind = StoredCluster::Kind::compressed;
      cluster.bytes = room.first(stored);
    } else if (gathered.empty()) {
      cluster.bytes = input;  // the caller's buffer, which outlives the write
    } else {
      std::ranges::copy(gathered.span(), room.begin());
      cluster.bytes = room;
    }
  }

 private:
  const Geometry& geometry_;
  Codec codec_;
  int level_;
  bool drops_zeroes_;
  ConstIoVec data_;

 public:
  std::vector<StoredCluster> clusters;

 private:
  Buffer output_;  // a cluster of room for each
};

}  // namespace vise::qcow2
