// File names of NBD exports, both ways.
#include "graph/nbd_names.h"

#include <gtest/gtest.h>

#include <string>

#include "util/json.h"
#include "vise/error.h"

namespace vise {
namespace {

struct Name {
  const char* text;
  const char* options;  // as JSON, without the driver
  const char* uri;      // printed back
};

class NbdName : public ::testing::TestWithParam<Name> {};

TEST_P(NbdName, BecomesOptionsAndAUri) {
  Value::Dict options = nbd_options_of_name(GetParam().text);
  EXPECT_EQ(options.take("driver")->as_string(), "nbd");
  EXPECT_EQ(json::print_line(Value(options)), GetParam().options);
  EXPECT_EQ(nbd_name_of_options(options), GetParam().uri);
}

INSTANTIATE_TEST_SUITE_P(
    Names, NbdName,
    ::testing::Values(
        Name{"nbd://host", R"({"server": {"type": "inet", "host": "host", "port": "10809"}})",
             "nbd://host:10809"},
        Name{"nbd://host:1/", R"({"server": {"type": "inet", "host": "host", "port": "1"}})",
             "nbd://host:1"},
        Name{"nbd+tcp://host:nbd/a/b%2fc",
             R"({"server": {"type": "inet", "host": "host", "port": "nbd"}, "export": "a/b/c"})",
             "nbd://host:nbd/a/b/c"},
        Name{"nbd://host//disk",
             R"({"server": {"type": "inet", "host": "host", "port": "10809"}, "export": "/disk"})",
             "nbd://host:10809//disk"},
        Name{"nbd://[::1]:5", R"({"server": {"type": "inet", "host": "::1", "port": "5"}})",
             "nbd://[::1]:5"},
        Name{"nbd+unix:///?socket=/s", R"({"server": {"type": "unix", "path": "/s"}})",
             "nbd+unix://?socket=/s"},
        Name{"nbd+unix:///a%20b?socket=/x%3Fy",
             R"({"server": {"type": "unix", "path": "/x?y"}, "export": "a b"})",
             "nbd+unix:///a b?socket=/x?y"},
        Name{"nbd:host:5:exportname=a:b",
             R"({"server": {"type": "inet", "host": "host", "port": "5"}, "export": "a:b"})",
             "nbd://host:5/a:b"},
        Name{"nbd:unix:/s", R"({"server": {"type": "unix", "path": "/s"}})",
             "nbd+unix://?socket=/s"}));

TEST(NbdNames, OptionsThatSayMoreHaveNoUri) {
  for (const char* text :
       {R"({"server": {"type": "inet", "host": "h", "port": "1", "ipv4": true}})",
        R"({"path": "/s", "tls-creds": "t"})", R"({"path": "/s", "host": "h"})", R"({})",
        R"({"server": {"type": "unix"}})", R"({"path": 7})"}) {
    EXPECT_EQ(nbd_name_of_options(json::parse(text).as_dict()), "") << text;
  }
  EXPECT_EQ(nbd_name_of_options(json::parse(R"({"host": "h"})").as_dict()), "nbd://h:10809");
}

}  // namespace
}  // namespace vise
