// What clusters hold, by a glance, and what becomes of that: each kind comes back, whichever
// compressor it goes to, and what does not shrink is not tried.
#include "codec/content.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "codec_fixture.h"

namespace vise::codec {
namespace {

TEST(ContentOf, IsToldByTheShareOfPrintableBytes) {
  std::mt19937 random(8);
  const auto with_text = [&random](std::size_t size, unsigned percent) {
    Bytes bytes(size);
    for (std::byte& value : bytes) {
      const unsigned printable = 'a' + random() % 20;
      value = static_cast<std::byte>(random() % 100 < percent ? printable : random() % 4);
    }
    return bytes;
  };
  for (const std::size_t size : {512u, 65536u, 2097152u}) {
    EXPECT_EQ(content_of(with_text(size, 100)), Content::text) << size;
    EXPECT_EQ(content_of(with_text(size, 62)), Content::text) << size;
    EXPECT_EQ(content_of(with_text(size, 40)), Content::programs) << size;
    EXPECT_EQ(content_of(with_text(size, 15)), Content::tables) << size;
    EXPECT_EQ(content_of(make(Kind::random, size)), Content::random) << size;
    EXPECT_EQ(content_of(Bytes(size)), Content::tables) << size;
  }
  EXPECT_EQ(content_of(Bytes(3, std::byte{'a'})), Content::text) << "shorter than a sample";
}

TEST(ContentOf, KnowsMachineCodeByItsSmallNegativeNumbers) {
  std::mt19937 random(10);
  const auto program = [&random](unsigned ones, unsigned zeros) {  // percent of the bytes
    Bytes bytes(65536);
    for (std::byte& value : bytes) {
      const unsigned dice = random() % 100;
      const unsigned other = random() % 2 == 0 ? 'a' + random() % 20 : 128 + random() % 64;
      value = static_cast<std::byte>(dice < ones ? 0xff : dice < ones + zeros ? 0 : other);
    }
    return bytes;
  };
  EXPECT_EQ(content_of(program(4, 12)), Content::code);
  EXPECT_EQ(content_of(program(0, 12)), Content::programs) << "message catalogues";
  EXPECT_EQ(content_of(program(20, 12)), Content::programs) << "tables of numbers";
  EXPECT_EQ(content_of(program(4, 32)), Content::programs) << "relocations, symbols";
}

// Machine code is compressed by another strategy: it comes back, and others can read it.
TEST(ContentOf, MachineCodeComesBackFromZstd) {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::string program(std::istreambuf_iterator<char>(file), {});
  const auto* const bytes = reinterpret_cast<const std::byte*>(program.data());
  unsigned found = 0;
  for (const std::size_t size : {32768u, 65536u, 131072u, 262144u}) {
    for (std::size_t at = 0; at + size <= program.size(); at += size) {
      const Bytes cluster = Bytes(bytes + at, bytes + at + size);
      found += content_of(cluster) == Content::code;
      const Bytes stored = stored_form(Codec::zstd, default_level, cluster);
      if (stored.empty()) continue;
      Bytes back(size);
      const DecodeResult result = decode(Codec::zstd, stored, back);
      EXPECT_TRUE(result.ok && result.had_checksum);
      EXPECT_TRUE(back == cluster);
      EXPECT_EQ(ZSTD_decompress(back.data(), size, stored.data(), stored.size()), size);
      EXPECT_TRUE(back == cluster);
    }
  }
#ifdef __x86_64__
  EXPECT_GT(found, 0u) << "the test itself is machine code";
#endif
}

// The default takes another library for some kinds from 64 KiB on: each comes back.
TEST(ContentOf, EveryKindComesBackAtTheDefaultLevel) {
  std::mt19937 random(9);
  for (const std::size_t size : {32768u, 65536u, 131072u, 2097152u}) {
    for (const unsigned percent : {0u, 20u, 40u, 60u, 100u}) {
      for (int i = 0; i < 8; ++i) {  // of the middle kind three in eight are treated like text
        Bytes cluster(size);
        for (std::size_t at = 0; at < size; at += 4) {
          const unsigned word =
              random() % 100 < percent ? 0x61626364u + random() % 9 : random() % 64;
          std::memcpy(&cluster[at], &word, 4);
        }
        const Bytes stored = stored_form(Codec::deflate, default_level, cluster);
        ASSERT_FALSE(stored.empty());
        Bytes back(size);
        const DecodeResult result = decode(Codec::deflate, stored, back);
        EXPECT_TRUE(result.ok && result.had_checksum);
        EXPECT_EQ(result.stored_length, stored.size());
        EXPECT_TRUE(back == cluster);
        z_stream stream = {};  // as QEMU reads it
        ASSERT_EQ(inflateInit2(&stream, -12), Z_OK);
        stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(stored.data()));
        stream.avail_in = static_cast<uInt>(stored.size());
        stream.next_out = reinterpret_cast<Bytef*>(back.data());
        stream.avail_out = static_cast<uInt>(size);
        EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
        inflateEnd(&stream);
        EXPECT_TRUE(back == cluster);
      }
    }
  }
}

TEST(Incompressible, OnlyRandomDataIs) {
  for (const std::size_t size : {512u, 4096u, 65536u, 2097152u}) {
    for (const Kind kind : {Kind::text, Kind::repeated_byte, Kind::sparse, Kind::random}) {
      const Bytes cluster = make(kind, size);
      Bytes scratch(size - 1);
      EXPECT_EQ(is_incompressible(content_of(cluster), cluster, scratch), kind == Kind::random)
          << size;
    }
  }
  const Bytes tiny = make(Kind::random, 128);
  Bytes scratch(127);
  EXPECT_FALSE(is_incompressible(content_of(tiny), tiny, scratch));
}

TEST(Incompressible, RandomDataThatShrinksIsNot) {
  Bytes scratch(65535);
  const Bytes repeats = make(Kind::long_distance, 65536);
  EXPECT_FALSE(is_incompressible(content_of(repeats), repeats, scratch));
  EXPECT_FALSE(stored_form(Codec::deflate, default_level, repeats).empty());
  // Random wherever the sample is taken.
  Bytes half = make(Kind::random, 65536);
  for (std::size_t i = 0; i < half.size(); ++i) {
    if (i % 16384 >= 8192) half[i] = std::byte{0};
  }
  EXPECT_FALSE(is_incompressible(content_of(half), half, scratch));
  EXPECT_FALSE(stored_form(Codec::deflate, default_level, half).empty());
}

// A tenth of the values never occur: deflate shrinks this, if not by much, and a level that is
// named must do so.
TEST(Incompressible, NamedLevelsAreTriedInFull) {
  std::mt19937 random(7);
  Bytes cluster(65536);
  for (std::byte& value : cluster) value = static_cast<std::byte>(random() % 250);
  Bytes scratch(65535);
  EXPECT_TRUE(is_incompressible(content_of(cluster), cluster, scratch));
  EXPECT_TRUE(stored_form(Codec::deflate, default_level, cluster).empty());
  const Bytes stored = stored_form(Codec::deflate, 6, cluster);
  EXPECT_FALSE(stored.empty());
}

}  // namespace
}  // namespace vise::codec
