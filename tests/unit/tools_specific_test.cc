#include "tools/common/specific.h"

#include <gtest/gtest.h>

#include "tools/common/key_order.h"
#include "util/json.h"

namespace vise::tools {
namespace {

TEST(PrintingOrder, IsTheKnownOneAtEveryLevel) {
  const Value value = json::parse(
      R"({"virtual-size": 1, "zzz": 2, "format-specific": {"data": {"extended-l2": false,
          "compat": "1.1"}, "type": "qcow2"}, "children": [], "filename": "a"})");
  EXPECT_EQ(json::print_line(in_printing_order(value)),
            R"({"children": [], "virtual-size": 1, "filename": "a", "format-specific": )"
            R"({"type": "qcow2", "data": {"compat": "1.1", "extended-l2": false}}, "zzz": 2})");
}

TEST(PrintingOrder, PutsTheLastAddedOfTwoEqualRanksFirst) {
  const Value value = json::parse(R"({"backing-filename-format": "raw", "children": 1})");
  EXPECT_EQ(json::print_line(in_printing_order(value)),
            R"({"children": 1, "backing-filename-format": "raw"})");
}

TEST(FormatSpecificText, MirrorsTheJson) {
  const Value value = json::parse(
      R"({"type": "x", "data": {"compat": "1.1", "lazy-refcounts": false, "format": "",
          "bitmaps": [{"flags": [], "name": "b0", "granularity": 65536}], "extended-l2": true}})");
  EXPECT_EQ(format_specific_text(value, 0),
            "Format specific information:\n"
            "    compat: 1.1\n"
            "    lazy refcounts: false\n"
            "    bitmaps:\n"
            "        [0]:\n"
            "            flags:\n"
            "            name: b0\n"
            "            granularity: 65536\n"
            "    format: \n"
            "    extended l2: true\n");
}

TEST(FormatSpecificText, IsNothingWithoutMembers) {
  EXPECT_EQ(format_specific_text(Value(), 0), "");
  EXPECT_EQ(format_specific_text(json::parse(R"({"type": "file", "data": {}})"), 4), "");
}

}  // namespace
}  // namespace vise::tools
