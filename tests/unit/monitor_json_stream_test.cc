#include "monitor/json_stream.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace vise {
namespace {

struct Found {
  std::vector<std::string> texts;
  std::vector<std::string> errors;
};

Found feed(JsonStream& stream, std::string_view bytes) {
  Found found;
  stream.feed(bytes, [&](std::string_view text, std::string_view error) {
    if (error.empty()) {
      found.texts.emplace_back(text);
    } else {
      found.errors.emplace_back(error);
    }
  });
  return found;
}

TEST(JsonStream, CutsObjectsThatStandBackToBack) {
  JsonStream stream;
  const Found found = feed(stream, R"({"a": "}"}['\']'] {"b": {}} word 12,)");
  EXPECT_EQ(found.texts, (std::vector<std::string>{R"({"a": "}"})", R"(['\']'])", R"({"b": {}})",
                                                   "word", "12"}));
  EXPECT_EQ(found.errors, std::vector<std::string>{"JSON parse error, stray ','"});
}

TEST(JsonStream, TakesAMessageInChunksOfAnySize) {
  const std::string message = R"({"execute": "x", "arguments": {"t": "\"{[", "l": [1, 2]}})";
  for (std::size_t cut = 0; cut <= message.size(); ++cut) {
    JsonStream stream;
    Found first = feed(stream, message.substr(0, cut));
    const Found second = feed(stream, message.substr(cut));
    first.texts.insert(first.texts.end(), second.texts.begin(), second.texts.end());
    EXPECT_EQ(first.texts, std::vector<std::string>{message}) << cut;
  }
}

TEST(JsonStream, ControlCharactersAndStrayBytesBringItBackFromAnyState) {
  for (const char* start : {"", "{", "[[{", "{\"a", "'\\", "word"}) {
    for (const char byte : {'\x01', '\xff', '\xfe'}) {
      JsonStream stream;
      feed(stream, start);
      const Found found = feed(stream, std::string(1, byte) + "{}");
      EXPECT_EQ(found.texts, std::vector<std::string>{"{}"}) << start;
      EXPECT_EQ(found.errors.size(), 1u) << start;
    }
  }
}

TEST(JsonStream, BracketsThatDoNotMatchAreAnErrorAtOnce) {
  JsonStream stream;
  const Found found = feed(stream, "[1} {}");
  EXPECT_EQ(found.errors, std::vector<std::string>{"JSON parse error, stray '}'"});
  EXPECT_EQ(found.texts, std::vector<std::string>{"{}"});
}

TEST(JsonStream, DepthSizeAndTokensAreBounded) {
  struct Case {
    JsonStream::Limits limits;
    std::string_view text;
    std::string_view error;
  };
  for (const Case& c : {Case{{.depth = 3}, "[[[[", "depth"}, Case{{.size = 5}, "[12345", "size"},
                        Case{{.tokens = 3}, "[1,2,3,4", "count"}}) {
    JsonStream stream(c.limits);
    const Found found = feed(stream, c.text);
    ASSERT_FALSE(found.errors.empty()) << c.text;
    EXPECT_NE(found.errors[0].find(c.error), std::string::npos) << found.errors[0];
  }
  JsonStream stream({.depth = 3});
  EXPECT_EQ(feed(stream, "[[[1]]]").texts.size(), 1u);
}

TEST(JsonStream, TheEndForgetsWhatIsNotComplete) {
  JsonStream stream;
  feed(stream, "{\"a\": [");
  stream.end();
  EXPECT_EQ(feed(stream, "{}").texts, std::vector<std::string>{"{}"});
}

}  // namespace
}  // namespace vise
