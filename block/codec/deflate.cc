// Deflate: libdeflate where it is there, zlib where not and for the streams libdeflate refuses.
//
// How the default level was chosen: the fastest whose files are not larger than QEMU's (zlib level
// 6 with a window of 4 KiB), trailers included. Two samples of ext4 images of /usr, of programs and
// libraries / mixed with sources and scripts; tests/bench/codec_levels.cc measures it.
//   cluster   QEMU        libdeflate 1          2                     6
//   64 KiB    44 MiB/s    +3.6 / -0.3 % 240     -2.7 / -5.0 % 180     -7.0 / -9.0 % 115
//   16 KiB    50 MiB/s           +3.1 % 260            -0.2 % 190            -3.5 % 134
//   4 KiB     50 MiB/s           +5.0 % 217            +2.4 % 161     +0.3 / +0.3 % 125
// Of clusters under 16 KiB the trailer alone is up to 0.6 %; level 6 makes up for it at 8 KiB
// (-0.7 %, 132), at 4 KiB level 7 does (another sample: level 6 +0.11 % 122, level 7 -0.01 % 100,
// QEMU 55). At 2 KiB the trailer is 1 %, and only the levels that look for the best parse make up
// for it: level 8 +0.1 / +0.5 / +0.7 % 73, 10 -0.3 / -0.5 % 22 of QEMU's 43; of smaller clusters
// none does (1 KiB: 8 +1.5 %, 10 +0.5 %). zlib with a window of 32 KiB at 64 KiB clusters: level 3
// -1.0 % 95 MiB/s, 4 -3.1 % 92, 6 -5.9 % 43; at 16 KiB clusters level 4 -0.1 %.
//
// From 64 KiB on libisal's level 2, three times as fast as libdeflate's (about 540 and 170 MiB/s of
// a file system), spends what libdeflate's 2 saves against QEMU's, which is most where QEMU's small
// window hurts most. To QEMU's size, libisal 2 / libdeflate 2, by the share of printable bytes:
//                    under 0.3       0.3 to 0.5      more
//   a file system    +6.2 / -1.4 %   +1.8 / -2.6 %   -0.4 to -3.0 / -8.2 to -11.2 %
//   sources, docs    +1.7 / -3.9 %   +0.5 / -4.8 %   +1.1 to -3.5 / -6.9 to -10.9 %
//   programs        +10.0 / +0.2 %   +3.7 / -2.7 %   few
//   locales          +4.1 / -5.5 %   +3.3 / -5.3 %   +0.1 to +2.6 / -4.3 to -7.6 %
// So libisal gets the last kind, and of the middle one three clusters in eight. At 32 KiB it would
// be 2 % larger than QEMU's for text as well.
#include "codec/deflate.h"

#include <xxhash.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>

#include "vise/error.h"
#include "vise/util/endian.h"

#ifdef VISE_HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#ifdef VISE_HAVE_ISAL
#include "codec/isal.h"
#endif

namespace vise::codec::deflate {
namespace {

using Bytes = std::span<const std::byte>;

std::uint32_t checksum(Bytes cluster) {
  return static_cast<std::uint32_t>(XXH64(cluster.data(), cluster.size(), 0));
}

// With either library.
constexpr int default_level_of(std::size_t cluster_size, int usual) {
  if (cluster_size < 4096) return std::min(10, max_level);
  if (cluster_size < 8192) return 7;
  return cluster_size < 16384 ? 6 : usual;
}

[[noreturn]] void out_of_memory() { throw Error::system_error(ENOMEM, "deflate"); }

const Bytef* in(const std::byte* data) { return reinterpret_cast<const Bytef*>(data); }
Bytef* out(std::byte* data) { return reinterpret_cast<Bytef*>(data); }

#ifdef VISE_HAVE_LIBDEFLATE

constexpr int default_native_level = 2;

struct FreeCompressor {
  void operator()(libdeflate_compressor* c) const { libdeflate_free_compressor(c); }
};
struct FreeDecompressor {
  void operator()(libdeflate_decompressor* d) const { libdeflate_free_decompressor(d); }
};

libdeflate_compressor& thread_compressor(int level) {
  // The level of a libdeflate compressor is fixed, and a program uses one or two.
  thread_local std::unique_ptr<libdeflate_compressor, FreeCompressor> compressors[max_level + 1];
  auto& compressor = compressors[level];
  if (!compressor) compressor.reset(libdeflate_alloc_compressor(level));
  if (!compressor) out_of_memory();
  return *compressor;
}

libdeflate_decompressor& thread_decompressor() {
  thread_local std::unique_ptr<libdeflate_decompressor, FreeDecompressor> decompressor(
      libdeflate_alloc_decompressor());
  if (!decompressor) out_of_memory();
  return *decompressor;
}

std::size_t encode_stream(int level, Bytes cluster, std::span<std::byte> stored) {
  return libdeflate_deflate_compress(&thread_compressor(level), cluster.data(), cluster.size(),
                                     stored.data(), stored.size());
}

#else

constexpr int default_native_level = 4;

struct Deflater {
  z_stream stream = {};
  int level;
  explicit Deflater(int stream_level) : level(stream_level) {
    // A 32 KiB window: legal, smaller, and read by every QEMU (reference: "Container").
    if (deflateInit2(&stream, level, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY) != Z_OK) {
      out_of_memory();
    }
  }
  ~Deflater() { deflateEnd(&stream); }
  Deflater(const Deflater&) = delete;
};

std::size_t encode_stream(int level, Bytes cluster, std::span<std::byte> stored) {
  thread_local std::unique_ptr<Deflater> deflater;
  if (!deflater || deflater->level != level) deflater = std::make_unique<Deflater>(level);
  z_stream& stream = deflater->stream;
  deflateReset(&stream);
  stream.next_in = const_cast<Bytef*>(in(cluster.data()));
  stream.avail_in = static_cast<uInt>(cluster.size());
  stream.next_out = out(stored.data());
  stream.avail_out = static_cast<uInt>(stored.size());
  if (::deflate(&stream, Z_FINISH) != Z_STREAM_END) return 0;
  return stored.size() - stream.avail_out;
}

#endif

#ifdef VISE_HAVE_ISAL

std::size_t encode_fastest(Bytes cluster, std::span<std::byte> stored) {
  return isal::compress(1, cluster, stored);
}

/// Whether libisal does a cluster at the default level: see the head of this file. `sum` is its
/// checksum, by which some clusters are chosen and others of the same kind are not.
bool is_for_isal(Content content, std::size_t cluster_size, std::uint32_t sum) {
  if (cluster_size < 65536) return false;
  const bool is_program = content == Content::programs || content == Content::code;
  return content == Content::text || (is_program && sum % 8 < 3);
}

#else

std::size_t encode_fastest(Bytes cluster, std::span<std::byte> stored) {
  return encode_stream(1, cluster, stored);
}

#endif

/// What became of a stream that gave all of the cluster.
struct Decoded {
  bool ok = false;
  bool complete = false;     // ended in its final block, exactly at the end of the cluster
  std::size_t consumed = 0;  // complete: bytes of `stored`, the last one perhaps only in part
};

struct Inflater {
  z_stream stream = {};
  Inflater() {
    if (inflateInit2(&stream, -15) != Z_OK) out_of_memory();
  }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(const Inflater&) = delete;
};

z_stream& start_inflating(Bytes stored, std::span<std::byte> to) {
  thread_local Inflater inflater;
  z_stream& stream = inflater.stream;
  inflateReset(&stream);
  stream.next_in = const_cast<Bytef*>(in(stored.data()));
  stream.avail_in = static_cast<uInt>(stored.size());
  stream.next_out = out(to.data());
  stream.avail_out = static_cast<uInt>(to.size());
  return stream;
}

/// The reference: succeeds once the cluster is full, also if the stream would go on or is cut off
/// there, unless what follows is no deflate.
Decoded decode_with_zlib(Bytes stored, std::span<std::byte> cluster) {
  z_stream& stream = start_inflating(stored, cluster);
  const int result = inflate(&stream, Z_FINISH);
  Decoded decoded;
  decoded.ok = stream.avail_out == 0 && (result == Z_STREAM_END || result == Z_BUF_ERROR);
  decoded.complete = decoded.ok && result == Z_STREAM_END;
  decoded.consumed = stored.size() - stream.avail_in;
  return decoded;
}

Decoded decode_stream(Bytes stored, std::span<std::byte> cluster) {
#ifdef VISE_HAVE_LIBDEFLATE
  Decoded decoded;
  const libdeflate_result result =
      libdeflate_deflate_decompress_ex(&thread_decompressor(), stored.data(), stored.size(),
                                       cluster.data(), cluster.size(), &decoded.consumed, nullptr);
  if (result == LIBDEFLATE_SUCCESS) {
    decoded.ok = decoded.complete = true;
    return decoded;
  }
  if (result == LIBDEFLATE_SHORT_OUTPUT) return {};
  // Too long, cut off or damaged: zlib knows at which byte of the output.
#endif
  return decode_with_zlib(stored, cluster);
}

bool has_mark(Bytes stored, std::size_t at) {
  return at + trailer_size <= stored.size() &&
         std::equal(trailer_mark.begin(), trailer_mark.end(), stored.begin() + at);
}

/// Where the trailer is that covers the cluster, or stored.size(). Normally right behind the
/// stream. A flipped bit may move the end of the stream by a few bytes, or make the stream longer
/// than the cluster; so that such damage is found as well, these cases look further. They do not
/// look where the trailer of the neighbour may be: the shortest stream has more than two bytes.
std::size_t find_trailer(Bytes stored, const Decoded& decoded) {
  if (!decoded.complete) {
    const auto found =
        std::search(stored.begin(), stored.end(), trailer_mark.begin(), trailer_mark.end());
    const auto at = static_cast<std::size_t>(found - stored.begin());
    return has_mark(stored, at) ? at : stored.size();
  }
  if (has_mark(stored, decoded.consumed)) return decoded.consumed;
  const std::size_t first = decoded.consumed - std::min(decoded.consumed, trailer_size);
  for (std::size_t at = first; at <= decoded.consumed + 2; ++at) {
    if (has_mark(stored, at)) return at;
  }
  return stored.size();
}

/// `encode` gives the length of the stream it has put into its argument, or 0.
template <class Encode>
std::size_t with_trailer(std::uint32_t sum, std::span<std::byte> stored, Encode encode) {
  if (stored.size() <= trailer_size) return 0;
  const std::size_t length = encode(stored.first(stored.size() - trailer_size));
  if (length == 0) return 0;
  std::memcpy(stored.data() + length, trailer_mark.data(), trailer_mark.size());
  store_le(stored.data() + length + trailer_mark.size(), sum);
  return length + trailer_size;
}

}  // namespace

std::size_t compress(int level, Bytes cluster, std::span<std::byte> stored) {
  return with_trailer(checksum(cluster), stored, [&](std::span<std::byte> room) {
    return level == fastest ? encode_fastest(cluster, room) : encode_stream(level, cluster, room);
  });
}

std::size_t compress_by_content([[maybe_unused]] Content content, Bytes cluster,
                                std::span<std::byte> stored) {
  const std::uint32_t sum = checksum(cluster);
  return with_trailer(sum, stored, [&](std::span<std::byte> room) {
#ifdef VISE_HAVE_ISAL
    if (is_for_isal(content, cluster.size(), sum)) return isal::compress(2, cluster, room);
#endif
    const int level = default_level_of(cluster.size(), default_native_level);
    return encode_stream(level, cluster, room);
  });
}

DecodeResult decode(Bytes stored, std::span<std::byte> cluster) {
  const Decoded decoded = decode_stream(stored, cluster);
  if (!decoded.ok) return {};
  const std::size_t trailer = find_trailer(stored, decoded);
  if (trailer == stored.size()) {
    const std::size_t length = decoded.complete ? decoded.consumed : stored.size();
    return {.ok = true, .had_checksum = false, .stored_length = length};
  }
  const auto expected = load_le<std::uint32_t>(stored.data() + trailer + trailer_mark.size());
  const bool agrees = expected == checksum(cluster);
  return {.ok = agrees, .had_checksum = true, .stored_length = trailer + trailer_size};
}

// libdeflate decodes all or nothing. Of 64 KiB of programs it does that in 77 µs; zlib takes 166,
// 88 for the first half, 48 for a quarter, 26 for an eighth.
bool decode_head(Bytes stored, std::size_t cluster_size, std::span<std::byte> head) {
  if (head.size() > cluster_size / 4) return false;
  const auto mark =
      std::search(stored.begin(), stored.end(), trailer_mark.begin(), trailer_mark.end());
  if (mark != stored.end()) return false;
  z_stream& stream = start_inflating(stored, head);
  const int result = inflate(&stream, Z_SYNC_FLUSH);
  return stream.avail_out == 0 && (result == Z_OK || result == Z_STREAM_END);
}

}  // namespace vise::codec::deflate
