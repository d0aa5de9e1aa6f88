// zstd frames with a content checksum. Callers outside this folder use codec.h.
#pragma once

#include <cstddef>
#include <span>

#include "codec/codec.h"

namespace vise::codec::zstd {

inline constexpr int max_level = 19;  // above it, memory grows and clusters do not shrink

/// `level` is a number of the library's, `default_level` or `fastest`.
std::size_t compress(int level, std::span<const std::byte> cluster, std::span<std::byte> stored);
DecodeResult decode(std::span<const std::byte> stored, std::span<std::byte> cluster);
std::size_t stored_length(std::span<const std::byte> stored, std::size_t cluster_size);
bool decode_head(std::span<const std::byte> stored, std::size_t cluster_size,
                 std::span<std::byte> head);

}  // namespace vise::codec::zstd
