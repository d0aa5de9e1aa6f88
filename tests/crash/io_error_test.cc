// A failing disk: the n-th write or flush of a run fails, for n = 1, 2, … until none does. Whatever
// fails, what was flushed is intact and the metadata is sound.
#include <gtest/gtest.h>

#include "crash/configs.h"

namespace vise::crash {
namespace {

constexpr unsigned requests_per_run = 40;

class FailingDisk : public testing::TestWithParam<Config> {
 protected:
  void fail_each(Disk::Fault fault) {
    const Settings settings = Settings::from_environment();
    const unsigned runs = settings.runs != 0 ? settings.runs : 3;
    Rig rig(GetParam());
    for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
      ASSERT_EQ(rig.fail_each(fault, seed, requests_per_run), "");
    }
  }
};

TEST_P(FailingDisk, OneFailedWriteHarmsNothing) {
  fail_each({.target = Disk::Fault::Target::write});
}

TEST_P(FailingDisk, WritesThatFailFromSomePointOnHarmNothing) {
  fail_each({.target = Disk::Fault::Target::write, .all_later = true});
}

TEST_P(FailingDisk, OneFailedFlushHarmsNothing) {
  fail_each({.target = Disk::Fault::Target::flush});
}

INSTANTIATE_TEST_SUITE_P(Qcow2, FailingDisk, testing::ValuesIn(qcow2_configs()), config_name);

}  // namespace
}  // namespace vise::crash
