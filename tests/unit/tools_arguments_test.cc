#include "tools/common/arguments.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace vise::tools {
namespace {

constexpr OptionSpec specs[] = {
    {'f', "format", "FMT", "the format"},   {'q', "quiet", nullptr, "say nothing"},
    {'U', "force-share", nullptr, "share"}, {key::output, "output", "human|json", "how to print"},
    {'h', "help", nullptr, "this help"},
};

Arguments parse(std::vector<std::string> words) { return parse_arguments("prog", words, specs); }

TEST(Arguments, MixOptionsAndOperands) {
  const Arguments arguments = parse({"a", "-f", "raw", "b", "-qU", "--", "-f"});
  EXPECT_EQ(arguments.operands, (std::vector<std::string>{"a", "b", "-f"}));
  EXPECT_EQ(arguments.value_or('f', "none"), "raw");
  EXPECT_TRUE(arguments.has('q'));
  EXPECT_TRUE(arguments.has('U'));
}

TEST(Arguments, LongNamesMayBeCut) {
  const Arguments arguments = parse({"--form=qcow2", "--outp", "json", "--format", "raw"});
  EXPECT_EQ(*arguments.last('f'), "raw");
  EXPECT_EQ(*arguments.last(key::output), "json");
  EXPECT_EQ(arguments.options.size(), 3u);
}

TEST(Arguments, HelpWinsAsSoonAsItIsReached) { EXPECT_TRUE(parse({"-h", "--unknown"}).has('h')); }

TEST(Arguments, UnknownOnesAreNamedOnStandardError) {
  testing::internal::CaptureStderr();
  EXPECT_THROW(parse({"-x"}), UsageError);
  EXPECT_THROW(parse({"--frob"}), UsageError);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "prog: invalid option -- 'x'\nprog: unrecognized option '--frob'\n");
}

TEST(Arguments, HelpListsEachOption) {
  EXPECT_EQ(describe_options(specs),
            "  -f, --format=FMT              the format\n"
            "  -q, --quiet                   say nothing\n"
            "  -U, --force-share             share\n"
            "      --output=human|json       how to print\n"
            "  -h, --help                    this help\n");
}

}  // namespace
}  // namespace vise::tools
