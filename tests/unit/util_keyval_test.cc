// Option strings and dotted keys.
#include "util/keyval.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "util/json.h"
#include "vise/error.h"

namespace vise {
namespace {

struct Case {
  const char* text;
  const char* json;  // what it means, or part of the error
};

class ImageOptions : public testing::TestWithParam<Case> {};
TEST_P(ImageOptions, Nest) {
  const Keyval result = parse_image_options(GetParam().text);
  EXPECT_EQ(json::print_line(result.options), GetParam().json);
}

INSTANTIATE_TEST_SUITE_P(
    Table, ImageOptions,
    testing::Values(
        Case{"", "{}"}, Case{"a=1", R"({"a": "1"})"}, Case{"a=1,", R"({"a": "1"})"},
        Case{"a=x,,y,b=", R"({"a": "x,y", "b": ""})"}, Case{"a=,,,b=2", R"({"a": ",", "b": "2"})"},
        Case{"a=1,a=2", R"({"a": "2"})"}, Case{"a= 1 ", R"({"a": " 1 "})"},
        Case{"a=b=c", R"({"a": "b=c"})"}, Case{"node0", R"({"file": "node0"})"},
        Case{"driver=qcow2,read-only", R"({"driver": "qcow2", "read-only": "on"})"},
        Case{"driver=raw,nolocking", R"({"driver": "raw", "locking": "off"})"},
        Case{"driver=qcow2,file.driver=file,file.filename=a.qcow2",
             R"({"driver": "qcow2", "file": {"driver": "file", "filename": "a.qcow2"}})"},
        Case{"driver=quorum,vote-threshold=1,children.0.driver=raw,children.0.file.filename=a,"
             "children.1.file.filename=b",
             R"({"driver": "quorum", "vote-threshold": "1", "children": [{"driver": "raw", )"
             R"("file": {"filename": "a"}}, {"file": {"filename": "b"}}]})"},
        Case{"l.1=b,l.0=a", R"({"l": ["a", "b"]})"}));

class BadImageOptions : public testing::TestWithParam<Case> {};
TEST_P(BadImageOptions, AreRefused) {
  try {
    parse_image_options(GetParam().text);
    FAIL() << "accepted " << GetParam().text;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(std::string(error.what()).find(GetParam().json), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadImageOptions,
    testing::Values(Case{"=1", "without a name"}, Case{"a=1,=2", "without a name"},
                    Case{"children=x,children.0=y", "'children' and 'children.*'"},
                    Case{"a.0=x,a.2=y", "'a.1' is missing"}, Case{"a.00=x,a.0=y", "mixes"},
                    Case{"a.0=x,a.b=y", "'a' mixes"}, Case{"a..b=1", "empty part"},
                    Case{".a=1", "empty part"}, Case{"a.=1", "empty part"},
                    Case{"a.99999999999999999999=1,a.0=2", "mixes"},
                    Case{",a=1", "comma too many"}));

TEST(ParseKeyval, WarnsOfLaterBareWords) {
  const Keyval result = parse_image_options("n0,snapshot,nofoo");
  EXPECT_EQ(result.bare_words, (std::vector<std::string>{"snapshot", "nofoo"}));
}

TEST(ParseKeyval, CreationOptionsRefuseEmptyPartsAndKeepDots) {
  for (const char* text : {"", ",", "a=1,", ",a=1", "a=1,,,"}) {
    EXPECT_THROW(parse_keyval(text, creation_options_syntax), Error) << text;
  }
  const Keyval result =
      parse_keyval("encrypt.format=luks,backing_file=a,,b,lazy_refcounts,nonocow,x=y,,",
                   creation_options_syntax);
  EXPECT_EQ(json::print_line(result.options),
            R"({"encrypt.format": "luks", "backing_file": "a,b", "lazy_refcounts": "on", )"
            R"("nocow": "off", "x": "y,"})");
}

TEST(ParseKeyval, BareWordsMayBeRefused) {
  EXPECT_THROW(parse_keyval("a=1,b", {}), Error);
  EXPECT_THROW(parse_keyval("b", {}), Error);
}

TEST(ParseKeyval, HelpIsFoundAsAWordOnly) {
  EXPECT_TRUE(asks_for_help("help"));
  EXPECT_TRUE(asks_for_help("a=1,?"));
  EXPECT_TRUE(asks_for_help("a=1,help,b=2"));
  EXPECT_FALSE(asks_for_help("a=help"));
  EXPECT_FALSE(asks_for_help("a=1,,help"));
  EXPECT_FALSE(asks_for_help(""));
}

TEST(NestDottedKeys, MixesNestedAndDotted) {
  const Value value = json::parse(
      "{'file': {'filename': 'x'}, 'file.driver': 'file', 'c': {'0': 1, '1': {'a.b': 2}}}");
  EXPECT_EQ(json::print_line(nest_dotted_keys(value.as_dict())),
            R"({"file": {"filename": "x", "driver": "file"}, "c": [1, {"a": {"b": 2}}]})");
}

TEST(NestDottedKeys, RefusesTheSameMemberTwice) {
  const Value value = json::parse("{'file': {'filename': 'x'}, 'file.filename': 'y'}");
  EXPECT_THROW(nest_dotted_keys(value.as_dict()), Error);
}

TEST(NestDottedKeys, DepthIsLimited) {
  std::string key = "a";
  for (int i = 0; i < 5000; ++i) key += ".a";
  Value::Dict dict;
  dict.set(key, 1);
  EXPECT_THROW(nest_dotted_keys(dict), Error);
}

}  // namespace
}  // namespace vise
