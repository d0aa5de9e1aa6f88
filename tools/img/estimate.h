// How large a compressed qcow2 image would become, estimated from a sample of its clusters.
#pragma once

#include <cstdint>

#include "vise/child.h"
#include "vise/value.h"

namespace vise::tools {

struct CompressedEstimate {
  std::uint64_t size = 0;  // bytes of the new file
  /// Bytes by which sampling may be off, with 95 % confidence. (Gaps between clusters are left
  /// out.)
  std::uint64_t error = 0;
  std::uint64_t data_clusters = 0;     // of the new image, as far as the source does not say zero
  std::uint64_t sampled_clusters = 0;  // of those: how many were read and compressed
};

/// What `convert -c -O qcow2` with these creation options and that level (see codec/codec.h) would
/// make of `source`. Reads 2048 clusters or 256 MiB, at least 64 clusters; with fewer data
/// clusters all, and the error is 0. The same for each run on the same data. Throws Error(EINVAL)
/// for bad options.
Task<CompressedEstimate> estimate_compressed(Child& source, const Value::Dict& options, int level);

}  // namespace vise::tools
