// JSON: what is read, what is refused and where, and the two printed layouts.
#include "util/json.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <random>
#include <string>

#include "vise/error.h"

namespace vise {
namespace {

struct Accepted {
  std::string text;
  std::string one_line;
};

class JsonAccepts : public testing::TestWithParam<Accepted> {};

TEST_P(JsonAccepts, AndPrintsOnOneLine) {
  EXPECT_EQ(json::print_line(json::parse(GetParam().text)), GetParam().one_line);
}

INSTANTIATE_TEST_SUITE_P(
    Table, JsonAccepts,
    testing::Values(Accepted{"null", "null"}, Accepted{" true ", "true"},
                    Accepted{"false", "false"}, Accepted{"0", "0"}, Accepted{"-0", "0"},
                    Accepted{"-17", "-17"}, Accepted{"1.50", "1.5"}, Accepted{"1e2", "100"},
                    Accepted{"-1.5E-3", "-0.0015"},
                    Accepted{"9223372036854775807", "9223372036854775807"},
                    Accepted{"-9223372036854775808", "-9223372036854775808"},
                    Accepted{"18446744073709551615", "18446744073709551615"},
                    Accepted{"18446744073709551616", "1.8446744073709552e+19"},
                    Accepted{"[]", "[]"}, Accepted{"{}", "{}"},
                    Accepted{"[ 1 ,2,\n[3]]", "[1, 2, [3]]"},
                    Accepted{"{'a': 1, \"b\": 'x\"y'}", "{\"a\": 1, \"b\": \"x\\\"y\"}"},
                    Accepted{R"('it\'s' )", "\"it's\""},
                    Accepted{R"("\/\b\f\n\r\t\\\"")", R"("/\b\f\n\r\t\\\"")"},
                    Accepted{R"("\u0000\u001f\u007F")", R"("\u0000\u001F\u007F")"},
                    Accepted{"\"gr\xc3\xbc\xc3\x9f\"", R"("gr\u00FC\u00DF")"},
                    Accepted{"\"\xf0\x9f\x98\x80\"", R"("\uD83D\uDE00")"},
                    Accepted{R"("\ud83d\ude00")", R"("\uD83D\uDE00")"}));

struct Refused {
  std::string text;
  std::string message;
};

class JsonRefuses : public testing::TestWithParam<Refused> {};

TEST_P(JsonRefuses, WithPositionAndReason) {
  try {
    json::parse(GetParam().text);
    FAIL() << "accepted " << GetParam().text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos)
        << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, JsonRefuses,
    testing::Values(
        Refused{"", "line 1, column 1: expected a value, found end of text"},
        Refused{"{'a': 1, 'a': 2}", "column 10: duplicate key \"a\""},
        Refused{"[1,\n 2,]", "line 2, column 4: expected a value, found ']'"},
        Refused{"{'a': 1,}", "expected a key in quotes, found '}'"},
        Refused{"{'a' 1}", "expected ':', found '1'"}, Refused{"{a: 1}", "key in quotes"},
        Refused{"[1 2]", "expected ',' or ']', found '2'"}, Refused{"{'a':1", "end of text"},
        Refused{"1 2", "unexpected '2' after the value"}, Refused{"True", "found 'T'"},
        Refused{"foo", "'foo' is not one of"}, Refused{"NaN", "found 'N'"},
        Refused{"+1", "found '+'"}, Refused{"01", "leading zero"}, Refused{"-", "without digits"},
        Refused{"1.", "digits after '.'"}, Refused{"1e", "exponent"},
        Refused{"1e999", "out of range"}, Refused{"'a", "string without end"},
        Refused{"'a\\", "string without end"}, Refused{"'\\x'", "invalid escape"},
        Refused{"'\\u12'", "four hexadecimal digits"}, Refused{"'\\u+123'", "four hexadecimal"},
        Refused{"'\\ud800'", "lone surrogate"}, Refused{"'\\udc00'", "lone surrogate"},
        Refused{"'\\ud800\\u0041'", "lone surrogate"}, Refused{"'a\tb'", "control character 0x09"},
        Refused{"'\xff'", "byte 0xff is not valid UTF-8"}, Refused{"'\xc0\x80'", "byte 0xc0"},
        Refused{"'\xed\xa0\x80'", "byte 0xed"}, Refused{"'\xf4\x90\x80\x80'", "byte 0xf4"},
        Refused{"'\xe2\x82'", "byte 0xe2"}, Refused{"\xef\xbb\xbf{}", "byte 0xef"},
        Refused{"// x\n1", "found '/'"}));

TEST(Json, NestingIsLimitedTo1024) {
  EXPECT_NO_THROW(json::parse(std::string(1024, '[') + std::string(1024, ']')));
  EXPECT_THROW(json::parse(std::string(1025, '[') + std::string(1025, ']')), Error);
  EXPECT_THROW(json::parse(std::string(1'000'000, '[')), Error);
}

TEST(Json, SizeIsLimited) { EXPECT_THROW(json::parse("[1, 2]", {.size = 5}), Error); }

TEST(Json, PrintsEachElementOnItsOwnLine) {
  Value::Dict dict;
  dict.set("children", Value::List());
  dict.set("virtual-size", 197120);
  Value::Dict data;
  data.set("type", "file");
  data.set("data", Value::Dict());
  dict.set("format-specific", data);
  dict.set("flags", Value::List{1, "x", false});
  EXPECT_EQ(json::print(dict), R"({
    "children": [
    ],
    "virtual-size": 197120,
    "format-specific": {
        "type": "file",
        "data": {
        }
    },
    "flags": [
        1,
        "x",
        false
    ]
})");
}

TEST(Json, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  EXPECT_EQ(json::quote("a\xff\xc3"), R"("a\uFFFD\uFFFD")");
}

TEST(Json, WhatIsPrintedReadsBackForRandomText) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (unsigned i = random() % 40; i > 0; --i)
      text += "{}[]:,'\"\\u0019ab.eE-\xc3\xa9 \n"[random() % 25];
    try {
      // Text is compared, as 2.0 prints as 2, which reads back as an integer.
      const Value value = json::parse(text);
      const std::string line = json::print_line(value);
      EXPECT_EQ(json::print_line(json::parse(line)), line) << text;
      EXPECT_EQ(json::print_line(json::parse(json::print(value))), line) << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), EINVAL);
    }
  }
}

TEST(ValueDict, KeepsInsertionOrderAndComparesWithoutIt) {
  Value::Dict one;
  one.set("b", 1);
  one.set("a", 2);
  one.set("b", 3);
  EXPECT_EQ(one.begin()->first, "b");
  EXPECT_EQ(one.begin()->second, Value(3));
  Value::Dict other;
  other.set("a", 2);
  other.set("b", 3);
  EXPECT_EQ(one, other);
  EXPECT_EQ(one.take("a"), Value(2));
  EXPECT_EQ(one.take("a"), std::nullopt);
  EXPECT_NE(one, other);
}

}  // namespace
}  // namespace vise
