// Chooses the codec; the work is in deflate.cc and zstd_frame.cc.
#include "codec/codec.h"

#include <fmt/format.h>

#include <cerrno>

#include "codec/content.h"
#include "codec/deflate.h"
#include "codec/zstd_frame.h"
#include "vise/error.h"

namespace vise::codec {

void check_level(Codec codec, int level) {
  const bool is_deflate = codec == Codec::deflate;
  const int maximum = is_deflate ? deflate::max_level : zstd::max_level;
  if (level == default_level || level == fastest || (level >= 1 && level <= maximum)) return;
  throw Error(EINVAL, fmt::format("compression level {} is out of range: {} has levels 1 to {}",
                                  level, is_deflate ? "zlib" : "zstd", maximum));
}

std::size_t compress(Codec codec, int level, std::span<const std::byte> cluster,
                     std::span<std::byte> stored) {
  if (codec == Codec::zstd) return zstd::compress(level, cluster, stored);
  // Who names a level wants every byte of it, and the fastest one is as fast as looking.
  if (level != default_level) return deflate::compress(level, cluster, stored);
  const Content content = content_of(cluster);
  if (is_incompressible(content, cluster, stored)) return 0;
  return deflate::compress_by_content(content, cluster, stored);
}

DecodeResult decode(Codec codec, std::span<const std::byte> stored, std::span<std::byte> cluster) {
  if (codec == Codec::deflate) return deflate::decode(stored, cluster);
  return zstd::decode(stored, cluster);
}

std::size_t stored_length(Codec codec, std::span<const std::byte> stored,
                          std::size_t cluster_size) {
  return codec == Codec::zstd ? zstd::stored_length(stored, cluster_size) : 0;
}

bool decode_head(Codec codec, std::span<const std::byte> stored, std::size_t cluster_size,
                 std::span<std::byte> head) {
  if (codec == Codec::deflate) return deflate::decode_head(stored, cluster_size, head);
  return zstd::decode_head(stored, cluster_size, head);
}

}  // namespace vise::codec
