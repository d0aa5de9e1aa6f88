// Checked arithmetic at the edges of its types.
#include "vise/util/checked.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace vise {
namespace {

constexpr std::uint64_t most = UINT64_MAX;

TEST(Checked, SumsThatDoNotFitAreNothing) {
  EXPECT_EQ(checked::add(most - 1, std::uint64_t{1}), most);
  EXPECT_FALSE(checked::add(most, std::uint64_t{1}));
  EXPECT_FALSE(checked::add(INT64_MAX, std::int64_t{1}));
  EXPECT_FALSE(checked::add(INT64_MIN, std::int64_t{-1}));
  EXPECT_EQ(checked::add<std::uint8_t>(200, 55), 255);
  EXPECT_FALSE((checked::add<std::uint8_t>(200, 56)));
}

TEST(Checked, DifferencesThatDoNotFitAreNothing) {
  EXPECT_EQ(checked::subtract(std::uint64_t{5}, std::uint64_t{5}), 0u);
  EXPECT_FALSE(checked::subtract(std::uint64_t{5}, std::uint64_t{6}));
  EXPECT_FALSE(checked::subtract(INT64_MIN, std::int64_t{1}));
}

TEST(Checked, ProductsThatDoNotFitAreNothing) {
  EXPECT_EQ(checked::multiply(std::uint64_t{1} << 32, (std::uint64_t{1} << 32) - 1),
            most - (std::uint64_t{1} << 32) + 1);
  EXPECT_FALSE(checked::multiply(std::uint64_t{1} << 32, std::uint64_t{1} << 32));
  EXPECT_EQ(checked::multiply(most, std::uint64_t{0}), 0u);
}

TEST(Checked, ShiftsLoseNoBit) {
  struct Case {
    std::uint64_t value;
    unsigned bits;
    bool fits;
  };
  for (const Case& test :
       {Case{1, 63, true}, Case{1, 64, false}, Case{3, 63, false}, Case{0, 64, true},
        Case{0, 1000, true}, Case{most, 0, true}, Case{most, 1, false}, Case{most >> 9, 9, true}}) {
    const auto result = checked::shift_left(test.value, test.bits);
    EXPECT_EQ(result.has_value(), test.fits) << test.value << " << " << test.bits;
    if (result && test.bits < 64) {
      EXPECT_EQ(*result >> test.bits, test.value);
    }
  }
  EXPECT_FALSE((checked::shift_left<std::uint8_t>(1, 8)));
  EXPECT_EQ((checked::shift_left<std::uint8_t>(1, 7)), 128);
}

TEST(Checked, AligningUpDoesNotWrap) {
  EXPECT_EQ(checked::align_up<std::uint64_t>(0, 4096), 0u);
  EXPECT_EQ(checked::align_up<std::uint64_t>(1, 4096), 4096u);
  EXPECT_EQ(checked::align_up<std::uint64_t>(4096, 4096), 4096u);
  EXPECT_EQ(checked::align_up<std::uint64_t>(most - 4095, 4096), most - 4095);
  EXPECT_FALSE(checked::align_up<std::uint64_t>(most - 4094, 4096));
}

TEST(Checked, DividingUpDoesNotWrap) {
  EXPECT_EQ(divide_up(0, 7), 0u);
  EXPECT_EQ(divide_up(1, 7), 1u);
  EXPECT_EQ(divide_up(7, 7), 1u);
  EXPECT_EQ(divide_up(most, 2), (most >> 1) + 1);
  EXPECT_EQ(align_up(4097, 4096), 8192u);
  EXPECT_EQ(align_down(4097, 4096), 4096u);
}

}  // namespace
}  // namespace vise
