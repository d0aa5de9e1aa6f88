// zstd: one frame per cluster, written with content size and checksum; read frame by frame.
//
// How the default was chosen: not larger than QEMU's (level 3), the checksum included, and the
// fastest that is so. Samples as in deflate.cc; tests/bench/codec_levels.cc measures it.
//   cluster    3                   4
//   2 MiB      +0.00 % 400 MiB/s   -1.2 % 320
//   256 KiB    +0.01 % 312         -1.2 % 223
//   16 KiB     +0.06 % 315         -2.0 % 180
//   8 KiB      +0.15 % 269         -2.0 % 187
//   4 KiB      +0.21 % 231         -1.3 % 165
// From 32 to 128 KiB larger hash tables make level 3 both smaller and faster. A file system /
// sources and manuals / programs and libraries:
//   64 KiB     level 3: +0.01 / +0.01 / +0.01 % 457 / 408 / 248 MiB/s
//              tables:  -0.05 / -0.05 / -0.13 % 491 / 426 / 274
//              level 4: -0.83 / -0.62 / -1.74 % 455 / 406 / 247
//   128 KiB    tables:  - / -0.11 / -0.31 % 429 / 261, level 4: - / -0.43 / -1.73 % 380 / 240
//   32 KiB     tables:  - / +0.00 / +0.00 % 399 / 266, level 4: - / -0.84 / -1.70 % 384 / 248
// Of machine code one hash table makes as little as two, and is a fifth faster (against level 3: a
// file system -0.19 %, programs -0.17 % of these clusters, sources +0.2 %); of what hardly shrinks
// as well, and is a third faster (a file system +0.02 %, others -0.1 to +0.1 %). Of all else it
// does not, from +0.3 % for other parts of programs to +6 % for text. So a file system takes 0.92,
// and a folder of programs 0.89 of the time.
#include "codec/zstd_frame.h"

#include <zstd.h>

#include <cerrno>
#include <cstdint>
#include <memory>

#include "codec/content.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::codec::zstd {
namespace {

/// Whether one hash table finds as much as two: see the head of this file.
bool has_fast_strategy(Content content) {
  return content == Content::code || content == Content::random;
}

void set_default_parameters(ZSTD_CCtx& context, std::span<const std::byte> cluster) {
  const auto set = [&context](ZSTD_cParameter parameter, int value) {
    ZSTD_CCtx_setParameter(&context, parameter, value);
  };
  constexpr int table_log = 17;
  const bool is_usual_size = cluster.size() >= 32768 && cluster.size() <= 131072;
  if (!is_usual_size) {
    // Of the smallest ones the checksum would make a file larger than QEMU's.
    set(ZSTD_c_compressionLevel, cluster.size() <= 8192 ? 4 : 3);
  } else if (has_fast_strategy(content_of(cluster))) {
    set(ZSTD_c_compressionLevel, 1);
    set(ZSTD_c_hashLog, table_log);
    set(ZSTD_c_minMatch, 4);
  } else {
    set(ZSTD_c_compressionLevel, 3);
    set(ZSTD_c_hashLog, table_log);
    set(ZSTD_c_chainLog, table_log);
    set(ZSTD_c_minMatch, 5);
  }
}

constexpr int fastest_native_level = 1;

/// Largest window accepted, in bytes; what other readers accept by default.
constexpr std::uint64_t max_window = std::uint64_t{1} << 27;

struct FreeContext {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

ZSTD_CCtx& thread_compressor() {
  thread_local std::unique_ptr<ZSTD_CCtx, FreeContext> context(ZSTD_createCCtx());
  if (!context) throw Error::system_error(ENOMEM, "zstd");
  return *context;
}

ZSTD_DCtx& thread_decompressor() {
  thread_local std::unique_ptr<ZSTD_DCtx, FreeContext> context(ZSTD_createDCtx());
  if (!context) throw Error::system_error(ENOMEM, "zstd");
  return *context;
}

/// The fields of a frame header that we judge by (RFC 8878, 3.1.1.1). The library has a function
/// for it, but not in its stable interface.
struct FrameHeader {
  bool valid = false;
  bool skippable = false;
  bool has_checksum = false;
};

FrameHeader parse_header(std::span<const std::byte> frame) {
  FrameHeader header;
  if (frame.size() < 6) return header;  // magic, descriptor, and a window or content size
  const auto magic = load_le<std::uint32_t>(frame.data());
  header.skippable = (magic & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START;
  header.valid = header.skippable || magic == ZSTD_MAGICNUMBER;
  if (header.skippable || !header.valid) return header;
  const auto descriptor = std::to_integer<unsigned>(frame[4]);
  header.has_checksum = (descriptor & 4) != 0;
  const bool single_segment = (descriptor & 0x20) != 0;  // then the window is the content
  if (!single_segment) {
    const auto window = std::to_integer<unsigned>(frame[5]);
    const std::uint64_t base = std::uint64_t{1} << (10 + (window >> 3));
    header.valid = base + base / 8 * (window & 7) <= max_window;
  }
  return header;
}

}  // namespace

std::size_t compress(int level, std::span<const std::byte> cluster, std::span<std::byte> stored) {
  ZSTD_CCtx& context = thread_compressor();
  // The size is known before the first byte, so that the frame says it and needs no window larger
  // than the cluster.
  ZSTD_CCtx_reset(&context, ZSTD_reset_session_and_parameters);
  if (level == default_level) {
    set_default_parameters(context, cluster);
  } else {
    ZSTD_CCtx_setParameter(&context, ZSTD_c_compressionLevel,
                           level == fastest ? fastest_native_level : level);
  }
  ZSTD_CCtx_setParameter(&context, ZSTD_c_checksumFlag, 1);
  const std::size_t length =
      ZSTD_compress2(&context, stored.data(), stored.size(), cluster.data(), cluster.size());
  return ZSTD_isError(length) != 0 ? 0 : length;
}

DecodeResult decode(std::span<const std::byte> stored, std::span<std::byte> cluster) {
  ZSTD_DCtx& context = thread_decompressor();
  const std::size_t given = stored.size();
  bool all_checked = true;
  // Behind the frame that fills the cluster may be anything, so the library gets each frame alone.
  while (!cluster.empty()) {
    const FrameHeader header = parse_header(stored);
    if (!header.valid) return {};
    const std::size_t frame_size = ZSTD_findFrameCompressedSize(stored.data(), stored.size());
    if (ZSTD_isError(frame_size) != 0) return {};
    if (!header.skippable) {
      const std::size_t length =
          ZSTD_decompressDCtx(&context, cluster.data(), cluster.size(), stored.data(), frame_size);
      if (ZSTD_isError(length) != 0) return {.ok = false, .had_checksum = header.has_checksum};
      cluster = cluster.subspan(length);
      all_checked = all_checked && header.has_checksum;
    }
    stored = stored.subspan(frame_size);
  }
  return {.ok = true, .had_checksum = all_checked, .stored_length = given - stored.size()};
}

// From the headers of frame and blocks alone.
std::size_t stored_length(std::span<const std::byte> stored, std::size_t cluster_size) {
  const FrameHeader header = parse_header(stored);
  if (!header.valid || header.skippable) return 0;
  if (ZSTD_getFrameContentSize(stored.data(), stored.size()) != cluster_size) return 0;
  const std::size_t length = ZSTD_findFrameCompressedSize(stored.data(), stored.size());
  return ZSTD_isError(length) != 0 ? 0 : length;
}

// zstd decodes block by block, of up to 128 KiB: in a cluster of one block there is nothing to win.
bool decode_head(std::span<const std::byte> stored, std::size_t cluster_size,
                 std::span<std::byte> head) {
  constexpr std::size_t block = 128u << 10;  // bytes
  if (cluster_size <= block || head.size() > cluster_size / 2) return false;
  const FrameHeader header = parse_header(stored);
  if (!header.valid || header.skippable || header.has_checksum) return false;
  ZSTD_DCtx& context = thread_decompressor();
  ZSTD_DCtx_reset(&context, ZSTD_reset_session_and_parameters);
  // No more memory than the largest clusters need, whatever the frame says.
  constexpr int window_log = 21;
  ZSTD_DCtx_setParameter(&context, ZSTD_d_windowLogMax, window_log);
  ZSTD_inBuffer from{stored.data(), stored.size(), 0};
  ZSTD_outBuffer to{head.data(), head.size(), 0};
  while (to.pos < to.size) {
    const std::size_t before = to.pos;
    const std::size_t left = ZSTD_decompressStream(&context, &to, &from);
    if (ZSTD_isError(left) != 0 || left == 0 || to.pos == before) break;
  }
  const bool done = to.pos == to.size;
  ZSTD_DCtx_reset(&context, ZSTD_reset_session_and_parameters);
  return done;
}

}  // namespace vise::codec::zstd
