#include "tools/common/sizes.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace vise::tools {
namespace {

constexpr std::uint64_t KiB = 1024;
constexpr std::uint64_t MiB = 1024 * KiB;
constexpr std::uint64_t GiB = 1024 * MiB;

struct ImageSize {
  std::uint64_t bytes;
  const char* text;
};

class ImageSizeText : public testing::TestWithParam<ImageSize> {};

TEST_P(ImageSizeText, IsTheSmallestUnitBelow1000) {
  EXPECT_EQ(image_size_text(GetParam().bytes), GetParam().text);
}

INSTANTIATE_TEST_SUITE_P(
    Samples, ImageSizeText,
    testing::Values(ImageSize{0, "0 B"}, ImageSize{999, "999 B"}, ImageSize{1000, "0.977 KiB"},
                    ImageSize{999 * KiB, "999 KiB"}, ImageSize{1000 * KiB, "0.977 MiB"},
                    ImageSize{100 * MiB + MiB / 2, "100 MiB"},
                    ImageSize{999 * MiB + MiB / 2, "1e+03 MiB"},
                    ImageSize{GiB + GiB / 2, "1.5 GiB"}, ImageSize{16 * 1024 * GiB, "16 TiB"},
                    ImageSize{3 * MiB + 317 * KiB, "3.31 MiB"}, ImageSize{UINT64_MAX, "16 EiB"}));

struct IoSize {
  double bytes;
  const char* text;
};

class IoSizeText : public testing::TestWithParam<IoSize> {};

TEST_P(IoSizeText, IsTheLargestUnitNotAboveTheValue) {
  EXPECT_EQ(io_size_text(GetParam().bytes), GetParam().text);
}

INSTANTIATE_TEST_SUITE_P(Samples, IoSizeText,
                         testing::Values(IoSize{0, "0 bytes"}, IoSize{512, "512 bytes"},
                                         IoSize{1023, "1023 bytes"}, IoSize{1024, "1 KiB"},
                                         IoSize{1536, "1.500 KiB"},
                                         IoSize{1024.0 * 1024 - 1, "1023.999 KiB"},
                                         IoSize{1024.0 * 1024, "1 MiB"},
                                         IoSize{1024.0 * 1024 + 1, "1 MiB"},
                                         IoSize{1024.0 * 1024 * 1024 - 1, "1024 MiB"},
                                         IoSize{66.573846, "66.573846 bytes"},
                                         IoSize{93.453 * 1024 * 1024, "93.453 MiB"}));

}  // namespace
}  // namespace vise::tools
