// Codecs: what is compressed comes back, by every level and for every size; what is damaged is
// noticed, and nothing outside the stored bytes is read (they lie in heap blocks of exactly their
// size, for AddressSanitizer to watch).
#include "codec/codec.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "codec/deflate.h"
#include "codec_fixture.h"
#include "vise/error.h"

namespace vise::codec {
namespace {

/// Decodes from a heap block of exactly the stored size into one of exactly the cluster size.
DecodeResult decode_exact(Codec codec, std::span<const std::byte> stored, Bytes& cluster,
                          std::size_t cluster_size) {
  const auto input = std::make_unique<std::byte[]>(stored.size());
  std::copy(stored.begin(), stored.end(), input.get());
  cluster = Bytes(cluster_size, std::byte{0x5a});
  return decode(codec, {input.get(), stored.size()}, cluster);
}

bool decodes_to(Codec codec, const Bytes& stored, const Bytes& expected) {
  Bytes cluster;
  const DecodeResult result = decode_exact(codec, stored, cluster, expected.size());
  return result.ok && cluster == expected;
}

Bytes from_hex(std::string_view hex) {
  Bytes bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

Bytes repeat(std::string_view word, std::size_t size) {
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(word[i % word.size()]);
  return bytes;
}

Bytes concatenate(Bytes a, const Bytes& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// A stream without our trailer, as QEMU makes it (window_bits -12) or as it is allowed (-15).
Bytes zlib_stream(const Bytes& data, int window_bits, int flush = Z_FINISH) {
  z_stream stream = {};
  deflateInit2(&stream, 9, Z_DEFLATED, window_bits, 9, Z_DEFAULT_STRATEGY);
  Bytes out(data.size() + data.size() / 8 + 64);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ::deflate(&stream, flush);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

Bytes zstd_frame(std::span<const std::byte> data, bool content_size = true, bool checksum = false) {
  const std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(),
                                                                     ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, content_size ? 1 : 0);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, checksum ? 1 : 0);
  Bytes out(ZSTD_compressBound(data.size()));
  out.resize(ZSTD_compress2(context.get(), out.data(), out.size(), data.data(), data.size()));
  return out;
}

Bytes skippable_frame(std::uint32_t size) {
  Bytes frame = from_hex("502a4d18");
  for (int shift = 0; shift < 32; shift += 8)
    frame.push_back(static_cast<std::byte>(size >> shift));
  frame.resize(frame.size() + size, std::byte{0x77});
  return frame;
}

struct RoundTrip {
  Codec codec;
  int level;
};

class CodecLevels : public testing::TestWithParam<RoundTrip> {};

TEST_P(CodecLevels, WhatIsCompressedComesBackWithSlopBehindIt) {
  const auto [codec, level] = GetParam();
  for (const Kind kind : {Kind::text, Kind::repeated_byte, Kind::sparse, Kind::long_distance}) {
    const std::size_t largest = level > 6 ? std::size_t{128} << 10 : std::size_t{2} << 20;
    for (std::size_t size = 512; size <= largest; size *= 4) {
      const Bytes cluster = make(kind, size);
      Bytes stored = stored_form(codec, level, cluster);
      if (stored.empty()) continue;  // did not shrink
      ASSERT_LT(stored.size(), size);
      Bytes decoded;
      const DecodeResult result = decode_exact(codec, stored, decoded, size);
      ASSERT_TRUE(result.ok && result.had_checksum) << size;
      ASSERT_EQ(decoded, cluster) << size;
      for (const std::byte slop : {std::byte{0}, std::byte{0xff}, std::byte{0x56}}) {
        Bytes longer = stored;
        longer.resize(stored.size() + 511, slop);
        ASSERT_TRUE(decodes_to(codec, longer, cluster)) << size;
      }
      ASSERT_TRUE(decodes_to(codec, concatenate(stored, stored), cluster)) << size;
    }
  }
}

std::vector<RoundTrip> all_levels() {
  std::vector<RoundTrip> result;
  for (const int level : {-1, 0, 1, 2, 3, 6, 9}) result.push_back({Codec::deflate, level});
  if (deflate::max_level == 12) result.push_back({Codec::deflate, 12});
  for (const int level : {-1, 0, 1, 3, 4, 9, 19}) result.push_back({Codec::zstd, level});
  return result;
}

INSTANTIATE_TEST_SUITE_P(All, CodecLevels, testing::ValuesIn(all_levels()),
                         [](const testing::TestParamInfo<RoundTrip>& test) {
                           const std::string codec =
                               test.param.codec == Codec::deflate ? "deflate" : "zstd";
                           return test.param.level < 0
                                      ? codec + "_fastest"
                                      : codec + "_" + std::to_string(test.param.level);
                         });

class EachCodec : public testing::TestWithParam<Codec> {};

TEST_P(EachCodec, RandomDataIsNotCompressed) {
  for (std::size_t size = 512; size <= std::size_t{2} << 20; size *= 8) {
    EXPECT_TRUE(stored_form(GetParam(), default_level, make(Kind::random, size)).empty()) << size;
  }
}

TEST_P(EachCodec, NothingIsWrittenBehindTheSpaceThatIsThere) {
  const Bytes cluster = make(Kind::text, 4096);
  const std::size_t full = stored_form(GetParam(), default_level, cluster).size();
  ASSERT_GT(full, 20u);
  for (std::size_t space = 0; space <= full; ++space) {
    const auto stored = std::make_unique<std::byte[]>(space);
    const std::size_t length = compress(GetParam(), default_level, cluster, {stored.get(), space});
    ASSERT_LE(length, space);
    if (length > 0) {
      ASSERT_TRUE(decodes_to(GetParam(), Bytes(stored.get(), stored.get() + length), cluster));
    }
  }
  Bytes enough(full + 8);
  EXPECT_NE(compress(GetParam(), default_level, cluster, enough), 0u);
}

TEST_P(EachCodec, TruncatedStreamsNeverGiveWrongData) {
  for (const std::size_t size : {std::size_t{512}, std::size_t{4096}, std::size_t{65536}}) {
    const Bytes cluster = make(Kind::text, size);
    const Bytes stored = stored_form(GetParam(), default_level, cluster);
    const std::size_t step = std::max<std::size_t>(1, stored.size() / 300);
    for (std::size_t length = 0; length < stored.size(); length += step) {
      Bytes decoded;
      const DecodeResult result =
          decode_exact(GetParam(), std::span(stored).first(length), decoded, size);
      if (result.ok) {
        ASSERT_EQ(decoded, cluster) << size << " " << length;
      }
      ASSERT_FALSE(result.ok && length < stored.size() / 2);
    }
  }
}

TEST_P(EachCodec, ASingleFlippedBitIsNeverSilent) {
  for (const Kind kind : {Kind::text, Kind::sparse, Kind::repeated_byte, Kind::long_distance}) {
    for (const std::size_t size : {std::size_t{512}, std::size_t{4096}, std::size_t{32768}}) {
      for (const int level : {1, 6}) {
        const Bytes cluster = make(kind, size, static_cast<unsigned>(size));
        Bytes stored = stored_form(GetParam(), level, cluster);
        if (stored.empty()) continue;
        // Behind it as on disk: the neighbour's stream.
        const std::size_t length = stored.size();
        stored = concatenate(stored, stored_form(GetParam(), level, make(Kind::text, size)));
        stored.resize(length + 200);
        const std::size_t step = std::max<std::size_t>(1, length * 8 / 3000);
        for (std::size_t bit = 0; bit < length * 8;
             bit += (bit > 200 && bit + 400 < length * 8) ? step : 1) {
          stored[bit / 8] ^= std::byte{1} << (bit % 8);
          Bytes decoded;
          const DecodeResult result = decode_exact(GetParam(), stored, decoded, size);
          ASSERT_TRUE(!result.ok || decoded == cluster)
              << "bit " << bit << " of " << length * 8 << ", size " << size << ", level " << level;
          stored[bit / 8] ^= std::byte{1} << (bit % 8);
        }
      }
    }
  }
}

TEST_P(EachCodec, GarbageIsRefusedWithoutReadingBeyondIt) {
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    Bytes stored = make(Kind::random, 1 + random() % 600, random());
    if (GetParam() == Codec::zstd && stored.size() > 4 && i % 2 == 0) {
      const Bytes magic = from_hex(i % 4 == 0 ? "28b52ffd" : "502a4d18");
      std::copy(magic.begin(), magic.end(), stored.begin());
    }
    Bytes decoded;
    const DecodeResult result = decode_exact(GetParam(), stored, decoded, 512u << (random() % 8));
    if (GetParam() == Codec::zstd) {
      ASSERT_FALSE(result.ok && result.had_checksum);
    }
  }
  Bytes decoded;
  EXPECT_FALSE(decode_exact(GetParam(), {}, decoded, 512).ok);
}

TEST_P(EachCodec, StreamsThatGiveTooLittleAreRefused) {
  const Bytes cluster = make(Kind::text, 4096);
  Bytes decoded;
  const Bytes stored = stored_form(GetParam(), default_level, cluster);
  EXPECT_FALSE(decode_exact(GetParam(), stored, decoded, 4097).ok);
  EXPECT_FALSE(decode_exact(GetParam(), stored, decoded, 8192).ok);
}

TEST_P(EachCodec, LevelsOutOfRangeAreNamed) {
  for (const int level : {-1, 0, 1, 9}) check_level(GetParam(), level);
  for (const int level : {-2, 20, 1000}) {
    try {
      check_level(GetParam(), level);
      FAIL() << level;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), EINVAL);
      EXPECT_NE(error.message().find(std::to_string(level)), std::string::npos);
      EXPECT_NE(error.message().find("1 to "), std::string::npos);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Both, EachCodec, testing::Values(Codec::deflate, Codec::zstd),
                         [](const testing::TestParamInfo<Codec>& test) {
                           return test.param == Codec::deflate ? "deflate" : "zstd";
                         });

// Reference, "Compressed data": 512-byte clusters of "12345678" as QEMU stores them.
TEST(Deflate, TheWorkedExampleOfTheReferenceDecodes) {
  const Bytes stored = from_hex("33343236313533b7301ca547240d00");
  ASSERT_EQ(stored.size(), 15u);
  const Bytes expected = repeat("12345678", 512);
  EXPECT_TRUE(decodes_to(Codec::deflate, stored, expected));
  for (const std::byte slop : {std::byte{0}, std::byte{0xff}}) {
    Bytes longer = stored;
    longer.resize(1024, slop);
    EXPECT_TRUE(decodes_to(Codec::deflate, longer, expected));
  }
}

TEST(Deflate, StreamsOfOthersDecodeAndHaveNoChecksum) {
  for (const int window_bits : {-12, -15}) {
    for (const Kind kind : {Kind::text, Kind::long_distance, Kind::random}) {
      const Bytes cluster = make(kind, 65536);
      Bytes stored = zlib_stream(cluster, window_bits);
      stored.resize(stored.size() + 100, std::byte{0xff});
      Bytes decoded;
      const DecodeResult result = decode_exact(Codec::deflate, stored, decoded, 65536);
      EXPECT_TRUE(result.ok);
      EXPECT_FALSE(result.had_checksum);
      EXPECT_EQ(decoded, cluster);
    }
  }
}

TEST(Deflate, TheTrailerOfTheNeighbourIsNotOurs) {
  const Bytes ours = make(Kind::text, 512, 1);
  const Bytes theirs = repeat("x", 512);  // the shortest stream there is
  const Bytes stored = concatenate(zlib_stream(ours, -12), stored_form(Codec::deflate, 9, theirs));
  Bytes decoded;
  const DecodeResult result = decode_exact(Codec::deflate, stored, decoded, 512);
  EXPECT_TRUE(result.ok);
  EXPECT_FALSE(result.had_checksum);
  EXPECT_EQ(decoded, ours);
}

TEST(Deflate, TheMarkCannotStartABlock) {
  EXPECT_EQ(deflate::trailer_mark[0] & std::byte{6}, std::byte{6});
  const Bytes cluster = make(Kind::text, 4096);
  Bytes stored = stored_form(Codec::deflate, default_level, cluster);
  const auto mark = stored.end() - deflate::trailer_size;
  EXPECT_TRUE(std::equal(deflate::trailer_mark.begin(), deflate::trailer_mark.end(), mark));
  // A stream of others followed by a wrong trailer is one of ours, damaged.
  Bytes damaged = zlib_stream(cluster, -12);
  damaged.insert(damaged.end(), mark, stored.end());
  EXPECT_TRUE(decodes_to(Codec::deflate, damaged, cluster));
  damaged.back() ^= std::byte{1};
  EXPECT_FALSE(decodes_to(Codec::deflate, damaged, cluster));
}

TEST(Deflate, TooLongAStreamGivesTheClusterAndTheRestIsIgnored) {
  const Bytes data = make(Kind::text, 8192);
  const Bytes half(data.begin(), data.begin() + 4096);
  EXPECT_TRUE(decodes_to(Codec::deflate, zlib_stream(data, -12), half));
}

TEST(Deflate, AnUnfinishedStreamFollowedByGarbageIsRefused) {
  const Bytes cluster = make(Kind::text, 4096);
  Bytes stored = zlib_stream(cluster, -12, Z_SYNC_FLUSH);  // whole, but without a final block
  EXPECT_TRUE(decodes_to(Codec::deflate, stored, cluster));
  stored.resize(stored.size() + 64, std::byte{0xff});  // block type 3
  EXPECT_FALSE(decodes_to(Codec::deflate, stored, cluster));
}

TEST(Deflate, AZlibHeaderIsRefused) {
  const Bytes cluster = make(Kind::text, 4096);
  EXPECT_FALSE(decodes_to(Codec::deflate, zlib_stream(cluster, 15), cluster));
}

TEST(Zstd, FramesOfOthersDecodeAndHaveNoChecksum) {
  const Bytes cluster = make(Kind::text, 65536);
  for (const bool content_size : {false, true}) {
    const Bytes stored = concatenate(zstd_frame(cluster, content_size), Bytes(300));
    Bytes decoded;
    const DecodeResult result = decode_exact(Codec::zstd, stored, decoded, 65536);
    EXPECT_TRUE(result.ok);
    EXPECT_FALSE(result.had_checksum);
    EXPECT_EQ(decoded, cluster);
  }
}

TEST(Zstd, SeveralFramesAndSkippableFramesDecode) {
  const Bytes cluster = make(Kind::text, 65536);
  const Bytes first = zstd_frame(std::span(cluster).first(1000), true, true);
  const Bytes second = zstd_frame(std::span(cluster).subspan(1000), false, true);
  Bytes stored = concatenate(concatenate(skippable_frame(17), first), skippable_frame(0));
  stored = concatenate(concatenate(stored, second), Bytes(77, std::byte{0xff}));
  Bytes decoded;
  const DecodeResult result = decode_exact(Codec::zstd, stored, decoded, 65536);
  EXPECT_TRUE(result.ok);
  EXPECT_TRUE(result.had_checksum);
  EXPECT_EQ(decoded, cluster);
}

TEST(Zstd, FramesThatGiveTooMuchAreRefused) {
  const Bytes data = make(Kind::text, 8192);
  const Bytes half(data.begin(), data.begin() + 4096);
  EXPECT_FALSE(decodes_to(Codec::zstd, zstd_frame(data), half));
  EXPECT_FALSE(decodes_to(Codec::zstd, zstd_frame(data, false), half));
  const Bytes two = concatenate(zstd_frame(std::span(data).first(4000)),
                                zstd_frame(std::span(data).subspan(4000)));
  EXPECT_FALSE(decodes_to(Codec::zstd, two, half));
}

TEST(Zstd, AHugeWindowIsRefused) {
  const Bytes cluster = make(Kind::repeated_byte, 4096);
  // Magic, descriptor without any flag, window, one final RLE block of 4096 bytes.
  const auto with_window = [](unsigned char window) {
    Bytes stored = from_hex(
        "28b52ffd00"
        "00"
        "0380"
        "00"
        "aa");
    stored[5] = static_cast<std::byte>(window);
    return stored;
  };
  EXPECT_TRUE(decodes_to(Codec::zstd, with_window(0x88), cluster));
  EXPECT_FALSE(decodes_to(Codec::zstd, with_window(0xf8), cluster));
}

TEST(Zstd, ALengthInFrontOfTheFrameIsRefused) {
  const Bytes cluster = make(Kind::text, 4096);
  EXPECT_FALSE(decodes_to(Codec::zstd, concatenate(Bytes(4), zstd_frame(cluster)), cluster));
}

TEST(Zstd, FramesHaveChecksumContentSizeAndNoWindowBeyondTheCluster) {
  for (std::size_t size = 512; size <= std::size_t{2} << 20; size *= 4) {
    const Bytes stored = stored_form(Codec::zstd, default_level, make(Kind::text, size));
    ASSERT_EQ(ZSTD_getFrameContentSize(stored.data(), stored.size()), size);
    EXPECT_EQ(stored[4] & std::byte{0x24}, std::byte{0x24});  // checksum, single segment
  }
}

Bytes head_of(const Bytes& cluster, std::size_t length) {
  return {cluster.begin(), cluster.begin() + static_cast<std::ptrdiff_t>(length)};
}

/// decode_head() from and to heap blocks of exactly their sizes; empty if it declined.
Bytes decode_head_exact(Codec codec, const Bytes& stored, std::size_t cluster_size,
                        std::size_t length) {
  const auto input = std::make_unique<std::byte[]>(stored.size());
  std::copy(stored.begin(), stored.end(), input.get());
  Bytes head(length);
  if (!decode_head(codec, {input.get(), stored.size()}, cluster_size, head)) head.clear();
  return head;
}

TEST(DecodeHead, GivesTheStartOfWhatOthersHaveWritten) {
  for (const Kind kind : {Kind::text, Kind::sparse, Kind::long_distance}) {
    const Bytes small = make(kind, 65536);
    const Bytes stored = concatenate(zlib_stream(small, -12), make(Kind::random, 300));
    for (const std::size_t length : {std::size_t{1}, std::size_t{4096}, std::size_t{16384}}) {
      EXPECT_EQ(decode_head_exact(Codec::deflate, stored, small.size(), length),
                head_of(small, length));
    }
    const Bytes large = make(kind, 1u << 20);
    for (const bool content_size : {false, true}) {
      const Bytes frame = concatenate(zstd_frame(large, content_size), make(Kind::random, 300));
      for (const std::size_t length : {std::size_t{1}, std::size_t{4096}, std::size_t{500000}}) {
        EXPECT_EQ(decode_head_exact(Codec::zstd, frame, large.size(), length),
                  head_of(large, length));
      }
    }
  }
}

TEST(DecodeHead, LeavesClustersWithAChecksumToTheWholeDecode) {
  const Bytes cluster = make(Kind::text, 1u << 20);
  for (const Codec codec : {Codec::deflate, Codec::zstd}) {
    EXPECT_TRUE(
        decode_head_exact(codec, stored_form(codec, 1, cluster), cluster.size(), 512).empty());
  }
}

TEST(DecodeHead, DeclinesWhereTheWholeIsFaster) {
  const Bytes cluster = make(Kind::text, 65536);
  EXPECT_TRUE(
      decode_head_exact(Codec::deflate, zlib_stream(cluster, -12), cluster.size(), 16385).empty());
  EXPECT_TRUE(decode_head_exact(Codec::zstd, zstd_frame(cluster), cluster.size(), 512).empty());
}

TEST(DecodeHead, DamagedStreamsNeverReadOutside) {
  const Bytes cluster = make(Kind::text, 1u << 18);
  std::mt19937 random(9);
  for (int i = 0; i < 300; ++i) {
    for (const Codec codec : {Codec::deflate, Codec::zstd}) {
      Bytes stored =
          codec == Codec::deflate ? zlib_stream(make(Kind::text, 4096), -12) : zstd_frame(cluster);
      stored.resize(1 + random() % stored.size());
      for (unsigned flips = random() % 4; flips > 0; --flips) {
        stored[random() % std::min<std::size_t>(stored.size(), 64)] ^=
            static_cast<std::byte>(random());
      }
      (void)decode_head_exact(codec, stored, codec == Codec::deflate ? 4096 : cluster.size(), 1000);
    }
  }
}

}  // namespace
}  // namespace vise::codec
