// Power failures: a qcow2 image is written by a guest with several requests in flight, compressed
// and not; then every state the disk may have been left in is opened and examined. Taking out any
// one of the write-order rules must make that fail, or it examines too little.
#include <gtest/gtest.h>

#include "crash/configs.h"
#include "format/qcow2/qcow2.h"

namespace vise::crash {
namespace {

constexpr unsigned requests_per_run = 100;

class CrashReplay : public testing::TestWithParam<Config> {};

TEST_P(CrashReplay, FlushedDataSurvivesAndTheMetadataIsSound) {
  const Settings settings = Settings::from_environment();
  const unsigned runs = settings.runs != 0 ? settings.runs : 10;
  Rig rig(GetParam());
  for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
    ASSERT_EQ(rig.crash_and_examine(seed, requests_per_run, {}), "");
  }
  std::cout << rig.states() << " states from seed " << settings.seed << "\n";
}

INSTANTIATE_TEST_SUITE_P(Qcow2, CrashReplay, testing::ValuesIn(qcow2_configs()), config_name);

struct Rule {
  const char* name;
  bool qcow2::OrderRules::* rule;
};

class WithoutRule : public testing::TestWithParam<Rule> {};

TEST_P(WithoutRule, SomethingIsLost) {
  const Settings settings = Settings::from_environment();
  const unsigned runs = settings.runs != 0 ? settings.runs : 100;
  Config config = qcow2_config(1024, "zlib");
  config.on_open = [](Driver& driver) {
    dynamic_cast<qcow2::Qcow2&>(driver).order_rules().*GetParam().rule = false;
  };
  Rig rig(config);
  for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
    const std::string problem = rig.crash_and_examine(seed, requests_per_run, {});
    if (problem.empty()) continue;
    std::cout << "found with seed " << seed << ": " << problem << "\n";
    return;
  }
  FAIL() << "nothing was lost in " << runs << " runs from seed " << settings.seed;
}

INSTANTIATE_TEST_SUITE_P(
    Qcow2, WithoutRule,
    testing::Values(Rule{"data_before_l2", &qcow2::OrderRules::data_before_l2},
                    Rule{"counts_before_l2", &qcow2::OrderRules::counts_before_l2},
                    Rule{"unlink_before_free", &qcow2::OrderRules::unlink_before_free},
                    Rule{"quarantine", &qcow2::OrderRules::quarantine}),
    [](const testing::TestParamInfo<Rule>& test) { return test.param.name; });

}  // namespace
}  // namespace vise::crash
