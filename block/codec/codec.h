// One cluster in, one cluster out: deflate and zstd behind one pair of functions.
// The two codecs are in deflate.cc (with the checksum trailer) and zstd_frame.cc.
#pragma once

#include <cstddef>
#include <span>

#include "vise/driver.h"

namespace vise::codec {

/// Compression levels, WriteFlags::level. 0 is the default of the codec: the fastest way to files
/// no larger than QEMU's. Deflate then does not try what zstd cannot shrink, and chooses between
/// two libraries by the content of a cluster. Others as the command line names them: deflate 1 to
/// 12 (1 to 9 in builds without libdeflate), zstd 1 to 19; `fastest` is whatever is fastest on this
/// machine. Of deflate the default and the fastest use libisal where the build has it, whose output
/// may differ from one kind of processor to another.
inline constexpr int default_level = 0;
inline constexpr int fastest = -1;

/// Throws Error(EINVAL) naming the range if `level` is not one of `codec`'s.
void check_level(Codec codec, int level);

/// Compresses `cluster` into `stored`: a raw RFC 1951 stream with our checksum trailer (deflate),
/// or one frame with content size and checksum and a window no larger than the cluster (zstd).
/// Returns the stored length in bytes, or 0 if it does not fit: pass a `stored` shorter than the
/// cluster, since a cluster that does not shrink is stored as it is. Deterministic for one build.
/// `level` has passed check_level(). Any thread; contexts are kept per thread. Throws
/// Error(ENOMEM).
std::size_t compress(Codec codec, int level, std::span<const std::byte> cluster,
                     std::span<std::byte> stored);

struct DecodeResult {
  /// The whole cluster was decoded, and a checksum that was there agreed.
  bool ok = false;
  /// The stored cluster carries a checksum of its content.
  bool had_checksum = false;
  /// ok: bytes of `stored` that hold the cluster, its checksum included; the rest is slop. May be
  /// more than needed where the stream is not one that we write.
  std::size_t stored_length = 0;
};

/// Decodes `stored`, which may end in slop, into exactly all of `cluster`. Not ok if the bytes are
/// no stream that gives that many bytes (or its checksum is wrong); then `cluster` is unspecified.
/// Never reads outside `stored`, whatever it holds, and allocates nothing by what it says. Any
/// thread. Throws Error(ENOMEM).
[[nodiscard]] DecodeResult decode(Codec codec, std::span<const std::byte> stored,
                                  std::span<std::byte> cluster);

/// How many bytes of `stored` hold the cluster, like DecodeResult's, told without decoding. 0 where
/// only decode() can tell (all of deflate), or where these are no whole frames of `cluster_size`
/// bytes; the data may be damaged all the same.
[[nodiscard]] std::size_t stored_length(Codec codec, std::span<const std::byte> stored,
                                        std::size_t cluster_size);

/// decode() for those who only want the data.
[[nodiscard]] inline bool decompress(Codec codec, std::span<const std::byte> stored,
                                     std::span<std::byte> cluster) {
  return decode(codec, stored, cluster).ok;
}

/// Decodes only as much of a cluster of `cluster_size` bytes as fills `head`. False, with `head`
/// unspecified, where all is to be decoded instead: that is faster, the cluster carries a checksum
/// (which only the whole of it agrees with), or the bytes are damaged.
[[nodiscard]] bool decode_head(Codec codec, std::span<const std::byte> stored,
                               std::size_t cluster_size, std::span<std::byte> head);

}  // namespace vise::codec
