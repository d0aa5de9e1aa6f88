// Scatter/gather vectors against plain byte vectors.
#include "vise/io_vec.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace vise {
namespace {

using Bytes = std::vector<std::byte>;

// Random segments (some empty) over one array, and the same bytes in order.
struct Scattered {
  Scattered(std::mt19937& random, std::size_t count) : memory(count * 16) {
    for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
    for (std::size_t i = 0; i < count; ++i) {
      const auto part = std::span(memory).subspan(i * 16 + random() % 4, random() % 12);
      segments.push_back(part);
      flat.insert(flat.end(), part.begin(), part.end());
    }
  }
  IoVec vec() const { return IoVec(std::span<const IoSegment>(segments)); }
  Bytes memory;
  std::vector<IoSegment> segments;
  Bytes flat;
};

template <class Vec>
Bytes bytes_of(const Vec& vec) {
  Bytes bytes(vec.size());
  vec.copy_to(bytes);
  return bytes;
}

class IoVecTest : public testing::Test {
 protected:
  IoVecTest() {
    const char* given = std::getenv("SEED");
    seed_ = given != nullptr ? static_cast<unsigned>(std::atoi(given)) : std::random_device{}();
    random_.seed(seed_);
  }
  std::size_t below(std::size_t limit) { return random_() % (limit + 1); }
  unsigned seed_;
  std::mt19937 random_;
};

TEST_F(IoVecTest, SlicesOfSlicesAreTheBytesTheySay) {
  SCOPED_TRACE("SEED=" + std::to_string(seed_));
  for (int round = 0; round < 2000; ++round) {
    const Scattered scattered(random_, below(12));
    ConstIoVec vec = scattered.vec();
    Bytes expected = scattered.flat;
    for (int depth = 0; depth < 4; ++depth) {
      ASSERT_EQ(bytes_of(vec), expected);
      const std::size_t offset = below(expected.size());
      const std::size_t length = below(expected.size() - offset);
      vec = vec.slice(offset, length);
      expected = Bytes(expected.begin() + static_cast<std::ptrdiff_t>(offset),
                       expected.begin() + static_cast<std::ptrdiff_t>(offset + length));
    }
  }
}

TEST_F(IoVecTest, ScatteringFillsWhatGatheringReads) {
  SCOPED_TRACE("SEED=" + std::to_string(seed_));
  for (int round = 0; round < 500; ++round) {
    const Scattered scattered(random_, 1 + below(10));
    const IoVec vec = scattered.vec();
    Bytes expected = scattered.flat;
    const std::size_t offset = below(expected.size());
    Bytes data(below(expected.size() - offset));
    for (std::byte& byte : data) byte = static_cast<std::byte>(random_());
    vec.copy_from(data, offset);
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
    ASSERT_EQ(bytes_of(vec), expected);
    vec.slice(offset).fill(std::byte{7});
    std::fill(expected.begin() + static_cast<std::ptrdiff_t>(offset), expected.end(), std::byte{7});
    ASSERT_EQ(bytes_of(vec), expected);
  }
}

TEST_F(IoVecTest, TheSegmentsOfAViewAreItsBytes) {
  for (int round = 0; round < 200; ++round) {
    const Scattered scattered(random_, 1 + below(10));
    const std::size_t offset = below(scattered.flat.size());
    const IoVec vec = scattered.vec().slice(offset);
    const std::vector<IoSegment> segments = vec.segments();
    EXPECT_EQ(segments.size(), vec.segment_count());
    EXPECT_EQ(bytes_of(IoVec(std::span<const IoSegment>(segments))), bytes_of(vec));
  }
}

TEST_F(IoVecTest, ContiguousMeansOneSegment) {
  Bytes bytes(100);
  const IoVec one(std::span<std::byte>{bytes});
  EXPECT_EQ(one.slice(10, 20).contiguous().data(), bytes.data() + 10);
  const std::vector<IoSegment> segments = {std::span(bytes).first(50),
                                           std::span(bytes).subspan(60)};
  const IoVec two{std::span<const IoSegment>(segments)};
  EXPECT_FALSE(two.is_contiguous());
  EXPECT_TRUE(two.slice(0, 50).is_contiguous());
  EXPECT_EQ(two.slice(50, 10).contiguous().data(), bytes.data() + 60);
  EXPECT_FALSE(two.slice(49, 2).is_contiguous());
  EXPECT_TRUE(two.slice(20, 0).is_contiguous());
  EXPECT_TRUE(IoVec().is_contiguous());
}

TEST_F(IoVecTest, AlignmentIsThatOfEverySegment) {
  alignas(64) std::byte bytes[256];
  const std::vector<IoSegment> segments = {std::span(bytes).first(64),
                                           std::span(bytes).subspan(128, 64)};
  const IoVec vec{std::span<const IoSegment>(segments)};
  EXPECT_TRUE(vec.is_aligned(64));
  EXPECT_FALSE(vec.slice(0, 100).is_aligned(64));
  EXPECT_FALSE(vec.slice(32).is_aligned(64));
  EXPECT_TRUE(vec.slice(32).is_aligned(32));
}

TEST_F(IoVecTest, ForEachStopsWhenTold) {
  const Scattered scattered(random_, 10);
  int calls = 0;
  scattered.vec().for_each([&calls](std::span<std::byte>) { return ++calls < 2; });
  EXPECT_LE(calls, 2);
}

TEST_F(IoVecTest, OneNonZeroByteAnywhereIsFound) {
  for (const std::size_t size : {0u, 1u, 7u, 63u, 64u, 65u, 127u, 128u, 1000u}) {
    Bytes bytes(size);
    EXPECT_TRUE(is_zero(std::span<const std::byte>(bytes)));
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = std::byte{1};
      EXPECT_FALSE(is_zero(std::span<const std::byte>(bytes))) << i << " of " << size;
      EXPECT_FALSE(is_zero(ConstIoVec(std::span<const std::byte>(bytes))));
      bytes[i] = std::byte{0};
    }
  }
}

}  // namespace
}  // namespace vise
