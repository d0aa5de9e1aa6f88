// Raw deflate (RFC 1951) with a checksum behind it. Callers outside this folder use codec.h.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "codec/codec.h"
#include "codec/content.h"
#include "vise-config.h"

namespace vise::codec::deflate {

#ifdef VISE_HAVE_LIBDEFLATE
inline constexpr int max_level = 12;
#else
inline constexpr int max_level = 9;
#endif

/// Stands right behind the last byte of a stream, followed by the low 32 bits of the XXH64 (seed 0)
/// of the decoded cluster, little-endian as in a zstd frame. Bits 1 and 2 of the first byte are
/// set: as the header of a deflate block that is the reserved type 3, so the neighbour's stream,
/// which follows at once in images that QEMU writes, never looks like it. The rest is arbitrary,
/// but no text in any usual encoding. Readers other than Vise skip all of it as slop.
inline constexpr std::array<std::byte, 4> trailer_mark = {std::byte{0x56}, std::byte{0xa9},
                                                          std::byte{0x1c}, std::byte{0xed}};
inline constexpr std::size_t trailer_size = 8;  // bytes, mark and checksum

/// `level` is a number of the library's or `fastest`.
std::size_t compress(int level, std::span<const std::byte> cluster, std::span<std::byte> stored);
/// The default: the compressor and level that suits the content best.
std::size_t compress_by_content(Content content, std::span<const std::byte> cluster,
                                std::span<std::byte> stored);
DecodeResult decode(std::span<const std::byte> stored, std::span<std::byte> cluster);
bool decode_head(std::span<const std::byte> stored, std::size_t cluster_size,
                 std::span<std::byte> head);

}  // namespace vise::codec::deflate
