// DirtyBitmap against a vector of flags, and what its serialised form looks like.
#include "bitmap/dirty_bitmap.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "qcow2_test_support.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {
namespace {

using qcow2::expect_error;

GuestRange range(std::uint64_t start, std::uint64_t length) { return {GuestOffset(start), length}; }

std::vector<std::byte> saved(const DirtyBitmap& bitmap) {
  std::vector<std::byte> bytes(bitmap.serialized_size());
  bitmap.save(0, bytes);
  return bytes;
}

TEST(DirtyBitmap, RefusesGranularitiesThatAreNoPowerOfTwoFrom512To2G) {
  for (const std::uint64_t bad : {0ull, 1ull, 256ull, 513ull, 1536ull, 1ull << 32}) {
    expect_error(EINVAL, "from 512 to 2147483648", [&] { DirtyBitmap(1 << 20, bad); });
  }
  EXPECT_EQ(DirtyBitmap(1, 512).bits(), 1u);
  EXPECT_EQ(DirtyBitmap(0, 512).bits(), 0u);
  EXPECT_EQ(DirtyBitmap(INT64_MAX, 1ull << 31).bits(), 1ull << 32);
}

TEST(DirtyBitmap, RefusesMoreBitsThanTheIndexHolds) {
  expect_error(EFBIG, "granularity of 512", [] { DirtyBitmap(INT64_MAX, 512); });
  DirtyBitmap bitmap(4096, 512);
  expect_error(EFBIG, "granularity of 512", [&] { bitmap.resize(INT64_MAX); });
  EXPECT_EQ(bitmap.size(), 4096u);
}

TEST(DirtyBitmap, TouchedGranulesAreDirtyAndOnlyWholeOnesAreCleaned) {
  DirtyBitmap bitmap(10 * 4096 + 100, 4096);
  bitmap.set(range(4095, 2));
  EXPECT_EQ(bitmap.dirty_bytes(), 2 * 4096u);
  bitmap.clear(range(1, 2 * 4096));
  EXPECT_TRUE(bitmap.is_dirty(GuestOffset(0)));
  EXPECT_FALSE(bitmap.is_dirty(GuestOffset(4096)));
  // The last granule is cut by the end of the disk, and counts as a whole one.
  bitmap.set(range(10 * 4096 + 99, 1000000));
  EXPECT_EQ(bitmap.dirty_bytes(), 2 * 4096u);
  bitmap.clear(range(10 * 4096, 100));
  EXPECT_EQ(bitmap.dirty_bytes(), 4096u);
}

TEST(DirtyBitmap, RangesPastTheEndAreIgnored) {
  DirtyBitmap bitmap(8192, 4096);
  bitmap.set(range(8192, 1));
  bitmap.set(range(UINT64_MAX - 1, 1));
  bitmap.set(range(100, 0));
  EXPECT_EQ(bitmap.dirty_bytes(), 0u);
  bitmap.set(range(4096, UINT64_MAX));
  EXPECT_EQ(bitmap.dirty_bytes(), 4096u);
}

TEST(DirtyBitmap, StretchesEndAtTheRangeAndAtTheDisk) {
  DirtyBitmap bitmap(10 * 512 + 5, 512);
  bitmap.set(range(3 * 512, 2 * 512));
  bitmap.set(range(10 * 512, 5));
  const auto first = bitmap.next_dirty(GuestOffset(0));
  ASSERT_TRUE(first);
  EXPECT_EQ(*first, range(3 * 512, 2 * 512));
  EXPECT_EQ(*bitmap.next_dirty(GuestOffset(4 * 512 + 7)), range(4 * 512 + 7, 505));
  EXPECT_EQ(*bitmap.next_dirty(GuestOffset(0), 3 * 512 + 1), range(3 * 512, 1));
  EXPECT_FALSE(bitmap.next_dirty(GuestOffset(0), 3 * 512));
  EXPECT_EQ(*bitmap.next_dirty(GuestOffset(5 * 512)), range(10 * 512, 5));
  EXPECT_FALSE(bitmap.next_dirty(GuestOffset(10 * 512 + 5)));
  EXPECT_EQ(bitmap.stretch(range(0, 100000)).length, 3 * 512u);
  EXPECT_FALSE(bitmap.stretch(range(0, 100000)).dirty);
  EXPECT_EQ(bitmap.stretch(range(3 * 512 + 1, 100)).length, 100u);
  EXPECT_TRUE(bitmap.stretch(range(10 * 512, 512)).dirty);
  EXPECT_EQ(bitmap.stretch(range(10 * 512, 512)).length, 5u);
}

TEST(DirtyBitmap, BitsAreStoredLeastSignificantFirst) {
  DirtyBitmap bitmap(12 * 512, 512);
  for (const std::uint64_t bit : {0, 3, 10, 11}) bitmap.set(range(bit * 512, 1));
  EXPECT_EQ(saved(bitmap), (std::vector{std::byte{0x09}, std::byte{0x0c}}));  // qcow2.md 7.1
}

TEST(DirtyBitmap, UnusedBitsAreMaskedOnLoading) {
  DirtyBitmap bitmap(12 * 512, 512);
  const std::vector ones(8, std::byte{0xff});
  bitmap.load(0, ones);
  EXPECT_EQ(bitmap.dirty_bytes(), 12 * 512u);
  EXPECT_EQ(saved(bitmap), (std::vector{std::byte{0xff}, std::byte{0x0f}}));
  DirtyBitmap other(12 * 512, 512);
  other.load_ones(0, 512);
  EXPECT_EQ(saved(other), saved(bitmap));
  std::vector<std::byte> cluster(512, std::byte{0xaa});
  other.save(0, cluster);
  EXPECT_EQ(cluster[1], std::byte{0x0f});
  EXPECT_EQ(cluster[2], std::byte{0});
  EXPECT_EQ(cluster[511], std::byte{0});
}

TEST(DirtyBitmap, GenerationChangesWithTheContentOnly) {
  DirtyBitmap bitmap(1 << 20, 512);
  const std::uint64_t before = bitmap.generation();
  bitmap.clear_all();
  EXPECT_EQ(bitmap.generation(), before);
  bitmap.set(range(0, 1));
  const std::uint64_t after = bitmap.generation();
  EXPECT_NE(after, before);
  bitmap.set(range(0, 512));
  EXPECT_EQ(bitmap.generation(), after);
}

TEST(DirtyBitmap, HugeRangesOfOneKindTakeNoTimeOrMemory) {
  DirtyBitmap bitmap(std::uint64_t{1} << 45, 512);  // all of max_bits
  bitmap.set(range(0, UINT64_MAX));
  EXPECT_EQ(bitmap.dirty_bytes(), std::uint64_t{1} << 45);
  EXPECT_EQ(bitmap.next_dirty(GuestOffset(0))->length, std::uint64_t{1} << 45);
  bitmap.clear_all();
  EXPECT_FALSE(bitmap.next_dirty(GuestOffset(0)));
}

// A bitmap and what it should hold.
struct Twin {
  Twin(std::uint64_t size, std::uint64_t granularity)
      : bitmap(size, granularity), flags(divide_up(size, granularity)) {}

  void change(GuestRange r, bool dirty) {
    const std::uint64_t g = bitmap.granularity();
    const std::uint64_t end = std::min(r.start.bytes() + r.length, bitmap.size());
    for (std::uint64_t i = 0; i < flags.size(); ++i) {
      const std::uint64_t from = i * g;
      const std::uint64_t to = std::min(from + g, bitmap.size());
      const bool touched = from < end && to > r.start.bytes() && r.length > 0;
      const bool covered = from >= r.start.bytes() && to <= end;
      if (dirty ? touched : covered) flags[i] = dirty;
    }
    dirty ? bitmap.set(r) : bitmap.clear(r);
  }

  void compare() const {
    std::uint64_t count = 0;
    for (const bool flag : flags) count += flag ? 1 : 0;
    ASSERT_EQ(bitmap.dirty_bytes(), count * bitmap.granularity());
    std::uint64_t at = 0;
    while (at < bitmap.size()) {
      const DirtyBitmap::Stretch stretch = bitmap.stretch(range(at, UINT64_MAX));
      ASSERT_GT(stretch.length, 0u);
      const std::uint64_t last = (at + stretch.length - 1) / bitmap.granularity();
      for (std::uint64_t i = at / bitmap.granularity(); i <= last; ++i) {
        ASSERT_EQ(flags[i], stretch.dirty) << "bit " << i;
      }
      at += stretch.length;
    }
    DirtyBitmap copy(bitmap.size(), bitmap.granularity());
    const std::vector<std::byte> bytes = saved(bitmap);
    copy.load(0, bytes);
    ASSERT_EQ(saved(copy), bytes);
    ASSERT_EQ(copy.dirty_bytes(), bitmap.dirty_bytes());
  }

  DirtyBitmap bitmap;
  std::vector<bool> flags;
};

TEST(DirtyBitmap, BehavesLikeAVectorOfFlags) {
  const unsigned seed = qcow2::test_seed();
  SCOPED_TRACE(::testing::Message() << "VISE_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 12; ++round) {
    const std::uint64_t granularity = 512u << (random() % 5);
    std::uint64_t size = granularity * (random() % 100000) + random() % 512;
    Twin twin(size, granularity);
    Twin source(size, 512u << (random() % 5));
    for (int step = 0; step < 20; ++step) {
      const std::uint64_t start = size == 0 ? 0 : random() % size;
      const std::uint64_t most = random() % 3 == 0 ? size + 1 : 40 * granularity;
      twin.change(range(start, random() % most), random() % 3 != 0);
      source.change(range(random() % (size + 1), random() % (8 * granularity)), true);
    }
    twin.compare();
    source.compare();
    twin.bitmap.merge(source.bitmap);
    for (std::uint64_t i = 0; i < source.flags.size(); ++i) {
      if (!source.flags[i]) continue;
      const std::uint64_t from = i * source.bitmap.granularity();
      const std::uint64_t to = std::min(from + source.bitmap.granularity(), size);
      for (std::uint64_t k = from / granularity; k * granularity < to; ++k) twin.flags[k] = true;
    }
    twin.compare();
    size = random() % (2 * size + 1);
    twin.bitmap.resize(size);
    twin.flags.resize(divide_up(size, granularity));
    twin.compare();
  }
}

TEST(DirtyBitmap, BitmapsOfDisksOfOtherSizesAreNotMerged) {
  DirtyBitmap bitmap(8192, 512);
  const DirtyBitmap other(8193, 512);
  expect_error(EINVAL, "8193", [&] { bitmap.merge(other); });
}

}  // namespace
}  // namespace vise
