// ValueReader: lenient and strict input, and errors that name the path.
#include "util/value_reader.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "vise/error.h"

namespace vise {
namespace {

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::string dict_error(const Value& value, const std::function<void(DictReader&)>& ask) {
  return error_of([&] {
    const ValueReader root(value, ValueInput::options, "file.");
    DictReader reader(root);
    ask(reader);
    reader.finish();
  });
}

TEST(ValueReader, OptionStringsStandForNumbersAndBooleans) {
  const auto reader = [](const Value& value) { return ValueReader(value, "", "x"); };
  const Value size("4k"), number("0x10"), negative("-3"), yes("on"), plain(7), real("1.5");
  EXPECT_EQ(reader(size).size(), 4096U);
  EXPECT_EQ(reader(number).integer(), 16);
  EXPECT_EQ(reader(negative).integer(), -3);
  EXPECT_EQ(reader(number).unsigned_integer(), 16U);
  EXPECT_TRUE(reader(yes).boolean());
  EXPECT_EQ(reader(plain).size(), 7U);
  EXPECT_EQ(reader(real).number(), 1.5);
}

TEST(ValueReader, JsonInputIsStrict) {
  const Value size("4k"), number("7"), yes("on"), real(1.0);
  const auto strict = [](const Value& value) { return ValueReader(value, ValueInput::json, "x"); };
  EXPECT_EQ(error_of([&] { strict(size).size(); }),
            "Invalid parameter type for 'x', expected: integer");
  EXPECT_NE(error_of([&] { strict(number).integer(); }), "no error");
  EXPECT_NE(error_of([&] { strict(yes).boolean(); }), "no error");
  EXPECT_NE(error_of([&] { strict(real).integer(); }), "no error");
}

TEST(ValueReader, RangesAreNamed) {
  const Value large(300), negative(-1), huge(UINT64_MAX), text("4z"), word("maybe");
  EXPECT_EQ(error_of([&] { ValueReader(large, "a.", "b").integer(0, 255); }),
            "Parameter 'a.b' expects an integer from 0 to 255");
  EXPECT_NE(error_of([&] { ValueReader(negative, "", "b").size(); }), "no error");
  EXPECT_NE(error_of([&] { ValueReader(huge, "", "b").integer(); }), "no error");
  EXPECT_EQ(ValueReader(huge, "", "b").unsigned_integer(), UINT64_MAX);
  EXPECT_NE(error_of([&] { ValueReader(text, "", "b").size(); }).find("Parameter 'b': '4z' is not"),
            std::string::npos);
  EXPECT_EQ(error_of([&] { ValueReader(word, "", "b").boolean(); }),
            "Parameter 'b' expects 'on' or 'off', not 'maybe'");
}

TEST(ValueReader, ChoicesNameWhatIsAllowed) {
  const std::array<std::string_view, 3> names = {"auto", "on", "off"};
  const Value good("off"), bad("outo");
  EXPECT_EQ(ValueReader(good, "", "locking").choice(names), 2U);
  EXPECT_EQ(error_of([&] { ValueReader(bad, "file.", "locking").choice(names); }),
            "Parameter 'file.locking' does not accept value 'outo', only auto, on, off; did you "
            "mean 'auto'?");
}

TEST(ValueReader, StringsHoldNoNul) {
  const Value value(std::string("a\0b", 3));
  EXPECT_NE(error_of([&] { ValueReader(value, "", "x").string(); }), "no error");
}

TEST(ValueReader, PathsFollowTheInput) {
  const Value leaf(1);
  const ValueReader options(leaf, ValueInput::options);
  EXPECT_EQ(options.member("a", leaf).element(0, leaf).member("b", leaf).path(), "a.0.b");
  const ValueReader strict(leaf, ValueInput::json);
  EXPECT_EQ(strict.member("a", leaf).element(0, leaf).member("b", leaf).path(), "a[0].b");
}

TEST(DictReader, AnUnknownMemberNamesTheNearest) {
  Value::Dict dict;
  dict.set("filenam", "x");
  EXPECT_EQ(dict_error(dict, [](DictReader& reader) { reader.require("filename"); }),
            "Parameter 'file.filenam' is unexpected: did you mean 'file.filename'?");
  EXPECT_EQ(dict_error(dict, [](DictReader& reader) { reader.find("size"); }),
            "Parameter 'file.filenam' is unexpected: known here are size");
}

TEST(DictReader, AMissingMemberIsNamed) {
  const Value empty{Value::Dict()};
  EXPECT_EQ(dict_error(empty, [](DictReader& reader) { reader.require("filename"); }),
            "Parameter 'file.filename' is missing");
  EXPECT_EQ(dict_error(empty, [](DictReader& reader) { reader.demand("driver"); }),
            "Parameter 'file.driver' is missing");
  Value::Dict dict;
  dict.set("drvier", "raw");
  EXPECT_EQ(dict_error(dict, [](DictReader& reader) { reader.demand("driver"); }),
            "Parameter 'file.drvier' is unexpected: did you mean 'file.driver'?");
}

}  // namespace
}  // namespace vise
