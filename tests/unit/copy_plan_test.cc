#include "copy/plan.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <random>
#include <vector>

#include "copy/rate_limit.h"

namespace vise {
namespace {

using namespace std::chrono_literals;

CopyPiece piece(CopyKind kind, std::uint64_t start, std::uint64_t length) {
  return {kind, {GuestOffset(start), length}};
}
constexpr auto data = CopyKind::data;
constexpr auto zero = CopyKind::zero;
constexpr auto skip = CopyKind::skip;

TEST(RoundOutData, GrowsDataToWholeUnits) {
  const std::vector<CopyPiece> pieces = {piece(zero, 0, 100), piece(data, 100, 10),
                                         piece(zero, 110, 146)};
  const std::vector<CopyPiece> expected = {piece(zero, 0, 64), piece(data, 64, 64),
                                           piece(zero, 128, 128)};
  EXPECT_EQ(round_out_data(pieces, 64), expected);
}

TEST(RoundOutData, StopsAtTheEndOfTheCopy) {
  const std::vector<CopyPiece> pieces = {piece(data, 0, 10), piece(zero, 10, 20)};
  EXPECT_EQ(round_out_data(pieces, 64), (std::vector<CopyPiece>{piece(data, 0, 30)}));
}

// Against the definition: a unit with any data in it is data, all else stays what it was.
TEST(RoundOutData, FollowsItsDefinitionForRandomPieces) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    const std::uint64_t unit = 1 + random() % 8;
    const std::uint64_t start = unit * (random() % 4);
    std::vector<CopyPiece> pieces;
    std::vector<CopyKind> kinds;
    for (int i = 0; i < 12; ++i) {
      const auto kind = static_cast<CopyKind>(random() % 3);
      const std::uint64_t length = 1 + random() % 20;
      append_piece(pieces, piece(kind, start + kinds.size(), length));
      kinds.insert(kinds.end(), length, kind);
    }
    std::vector<CopyKind> expected = kinds;
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      const std::size_t from = i / unit * unit;
      for (std::size_t j = from; j < std::min(kinds.size(), from + unit); ++j) {
        if (kinds[j] == data) expected[i] = data;
      }
    }
    std::vector<CopyKind> got;
    for (const CopyPiece& p : round_out_data(pieces, unit)) {
      ASSERT_EQ(p.range.start.bytes(), start + got.size());
      got.insert(got.end(), p.range.length, p.kind);
    }
    ASSERT_EQ(got, expected) << "round " << round;
  }
}

TEST(RoundOutData, DoesNotWalkThroughLongStretches) {
  const std::uint64_t tib = std::uint64_t{1} << 40;
  const std::vector<CopyPiece> pieces = {piece(skip, 0, 100 * tib)};
  EXPECT_EQ(round_out_data(pieces, 512), pieces);
}

TEST(SplitZeroes, FindsRunsOfWholeUnits) {
  std::vector<std::byte> bytes(64 * 4 + 10, std::byte{0});
  bytes[64] = std::byte{1};
  std::vector<CopyPiece> pieces;
  split_zeroes(bytes, GuestOffset(640), 64, pieces);
  EXPECT_EQ(pieces, (std::vector<CopyPiece>{piece(zero, 640, 64), piece(data, 704, 64),
                                            piece(zero, 768, 138)}));
}

TEST(SplitZeroes, ContinuesThePieceBefore) {
  const std::vector<std::byte> bytes(64, std::byte{0});
  std::vector<CopyPiece> pieces = {piece(zero, 0, 64)};
  split_zeroes(bytes, GuestOffset(64), 64, pieces);
  EXPECT_EQ(pieces, (std::vector<CopyPiece>{piece(zero, 0, 128)}));
}

TEST(RateLimit, AveragesItsRate) {
  RateLimit limit(1000);
  RateLimit::Clock::time_point now;
  now += 1h;
  EXPECT_EQ(limit.reserve(now, 500), 0ns);
  EXPECT_EQ(limit.reserve(now, 500), 500ms);
  now += 500ms;
  EXPECT_EQ(limit.reserve(now, 1000), 500ms);
}

TEST(RateLimit, SavesNothingUp) {
  RateLimit limit(1000);
  RateLimit::Clock::time_point now;
  now += 1h;
  EXPECT_EQ(limit.reserve(now, 1000), 0ns);
  now += 1h;
  EXPECT_EQ(limit.reserve(now, 1000), 0ns);
  EXPECT_EQ(limit.reserve(now, 1000), 1s);
}

TEST(RateLimit, IsOffAtZero) {
  RateLimit limit;
  EXPECT_EQ(limit.reserve(RateLimit::Clock::time_point(), UINT64_MAX), 0ns);
}

}  // namespace
}  // namespace vise
