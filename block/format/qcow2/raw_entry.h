// L1 and L2 entries as check sees them: bits that decoding for I/O masks or refuses must be told
// apart here (qcow2.md 3.2 to 3.4).
#pragma once

#include <cstdint>

#include "vise/types.h"

namespace vise::qcow2::raw_entry {

inline constexpr std::uint64_t copied = std::uint64_t{1} << 63;
inline constexpr std::uint64_t compressed = std::uint64_t{1} << 62;
inline constexpr std::uint64_t zero = 1;
inline constexpr std::uint64_t offset_mask = 0x00fffffffffffe00;
inline constexpr std::uint64_t l1_reserved = 0x7f000000000001ff;
inline constexpr std::uint64_t l2_reserved = 0x3f000000000001fe;

/// All bytes that reading a compressed cluster may touch; whole sectors but for the start.
inline HostRange compressed_range(std::uint64_t word, unsigned cluster_bits) {
  const unsigned offset_bits = 70 - cluster_bits;
  const std::uint64_t offset = word & ((std::uint64_t{1} << offset_bits) - 1);
  const std::uint64_t sectors =
      (word >> offset_bits) & ((std::uint64_t{1} << (cluster_bits - 8)) - 1);
  return {HostOffset(offset), (sectors + 1) * 512 - (offset & 511)};
}

}  // namespace vise::qcow2::raw_entry
