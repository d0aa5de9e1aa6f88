// Sizes, booleans and names as the command lines take them.
#include "vise/options.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "vise/error.h"

namespace vise {
namespace {

struct Size {
  const char* text;
  std::uint64_t bytes;
};

class ParseSize : public testing::TestWithParam<Size> {};

TEST_P(ParseSize, Accepts) { EXPECT_EQ(parse_size(GetParam().text), GetParam().bytes); }

INSTANTIATE_TEST_SUITE_P(
    Table, ParseSize,
    testing::Values(Size{"0", 0}, Size{"1.5k", 1536}, Size{".5M", 524288}, Size{"5.", 5},
                    Size{"1.0", 1}, Size{"1.0b", 1}, Size{"1.3k", 1331}, Size{"1.0001M", 1048681},
                    Size{"0.000001G", 1074}, Size{"010", 10}, Size{" 5", 5}, Size{"\t+5", 5},
                    Size{"+5", 5}, Size{"0x1000", 4096}, Size{"0X1f", 31}, Size{"512b", 512},
                    Size{"1K", 1024}, Size{"64M", 64 << 20}, Size{"3g", 3ULL << 30},
                    Size{"2T", 2ULL << 40}, Size{"1p", 1ULL << 50}, Size{"7E", 7ULL << 60},
                    Size{"9223372036854775807", INT64_MAX}, Size{"0x7fffffffffffffff", INT64_MAX},
                    Size{"7.99999999999999999999999E", (8ULL << 60) - 1},
                    Size{"0.00000000000000000000000000000000001E", 0}));

struct BadSize {
  const char* text;
  int code;
};

class RefuseSize : public testing::TestWithParam<BadSize> {};

TEST_P(RefuseSize, WithAnErrorThatQuotesIt) {
  try {
    const std::uint64_t bytes = parse_size(GetParam().text);
    FAIL() << GetParam().text << " gave " << bytes;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), GetParam().code) << error.what();
    EXPECT_NE(std::string(error.what()).find(GetParam().text), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, RefuseSize,
    testing::Values(BadSize{"1.5", EINVAL}, BadSize{"1.5b", EINVAL}, BadSize{"0.5", EINVAL},
                    BadSize{"1kb", EINVAL}, BadSize{"1KiB", EINVAL}, BadSize{"1Z", EINVAL},
                    BadSize{"1e3", EINVAL}, BadSize{"1M1", EINVAL}, BadSize{"5 ", EINVAL},
                    BadSize{"inf", EINVAL}, BadSize{"", EINVAL}, BadSize{".", EINVAL},
                    BadSize{"k", EINVAL}, BadSize{"0x", EINVAL}, BadSize{"0x1k", EINVAL},
                    BadSize{"0x1.8k", EINVAL}, BadSize{"-1k", EINVAL}, BadSize{"+-1", EINVAL},
                    BadSize{"-1", ERANGE}, BadSize{"8E", ERANGE}, BadSize{"16E", ERANGE},
                    BadSize{"9223372036854775808", ERANGE},
                    BadSize{"99999999999999999999999", ERANGE},
                    BadSize{"0x8000000000000000", ERANGE}));

TEST(ParseBool, TakesLowerCaseWordsOnly) {
  for (const char* word : {"on", "yes", "true", "y"}) EXPECT_TRUE(parse_bool(word)) << word;
  for (const char* word : {"off", "no", "false", "n"}) EXPECT_FALSE(parse_bool(word)) << word;
  for (const char* word : {"1", "0", "ON", "True", "", " on"}) {
    EXPECT_THROW(parse_bool(word), Error) << word;
  }
}

TEST(NearestName, FindsSlipsAndNothingElse) {
  const std::vector<std::string> names = {"filename", "aio", "locking", "lazy-refcounts", "mode"};
  EXPECT_EQ(nearest_name("filenam", names), "filename");
  EXPECT_EQ(nearest_name("mdoe", names), "mode");
  EXPECT_EQ(nearest_name("lazy_refcounts", names), "lazy-refcounts");
  EXPECT_EQ(nearest_name("lazyrefcount", names), "lazy-refcounts");
  EXPECT_EQ(nearest_name("ai", names), "aio");
  EXPECT_EQ(nearest_name("size", names), std::nullopt);
  EXPECT_EQ(nearest_name("x", names), std::nullopt);
  EXPECT_EQ(nearest_name("", names), std::nullopt);
  EXPECT_EQ(nearest_name(std::string(10000, 'a'), names), std::nullopt);
}

}  // namespace
}  // namespace vise
