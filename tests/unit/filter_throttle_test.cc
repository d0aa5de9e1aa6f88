// Throttle groups: the arithmetic with a clock of the test's own, and the node.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "filter/throttle_group.h"
#include "memory_driver.h"
#include "vise/objects.h"

namespace vise {
namespace {

using test::GraphTest;
using test::memory_options;
using test::MemoryDisk;
using Limits = ThrottleGroup::Limits;
using Direction = ThrottleGroup::Direction;

// How many requests of `bytes` pass in `seconds` if each comes as soon as the one before has.
int passed(ThrottleGroup& group, ThrottleGroup::Clock::time_point start, double seconds,
           std::uint64_t bytes, Direction direction = Direction::read) {
  using Duration = ThrottleGroup::Clock::duration;
  auto now = start;
  const auto end =
      start + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
  int count = 0;
  while (now < end) {
    const auto wait = group.try_admit(now, direction, bytes);
    if (wait.count() <= 0) {
      ++count;
    } else {
      now += std::chrono::ceil<std::chrono::microseconds>(wait);
    }
  }
  return count;
}

TEST(ThrottleGroups, RequestsAverageTheLimit) {
  for (const double rate : {7.0, 100.0, 5000.0}) {
    Limits limits;
    limits.limits[Limits::requests_total].average = rate;
    ThrottleGroup group(limits);
    const int count = passed(group, ThrottleGroup::Clock::now(), 10, 4096);
    EXPECT_NEAR(count, 10 * rate + rate / 10, 2) << rate;
  }
}

TEST(ThrottleGroups, BytesAverageTheLimit) {
  Limits limits;
  limits.limits[Limits::bytes_write].average = 1 << 20;
  ThrottleGroup group(limits);
  const auto now = ThrottleGroup::Clock::now();
  EXPECT_NEAR(passed(group, now, 20, 65536, Direction::write), 20 * 16 + 1.6, 2);
  // Reads are not limited.
  EXPECT_EQ(group.try_admit(now, Direction::read, 1 << 30).count(), 0);
  EXPECT_EQ(group.try_admit(now, Direction::read, 1 << 30).count(), 0);
}

TEST(ThrottleGroups, ABurstPassesAtOnceWhereItIsShort) {
  Limits limits;
  limits.limits[Limits::requests_total] = {.average = 10, .burst = 100};
  ThrottleGroup group(limits);
  const auto now = ThrottleGroup::Clock::now();
  EXPECT_NEAR(passed(group, now, 0.001, 1), 101, 1);
  EXPECT_NEAR(passed(group, now + std::chrono::milliseconds(1), 10, 1), 100, 2);
}

TEST(ThrottleGroups, ALongBurstKeepsItsOwnRate) {
  Limits limits;
  limits.limits[Limits::requests_total] = {.average = 10, .burst = 100, .burst_length = 5};
  ThrottleGroup group(limits);
  const auto now = ThrottleGroup::Clock::now();
  EXPECT_NEAR(passed(group, now, 1, 1), 110, 2);  // and what collects in a tenth of a second
  EXPECT_NEAR(passed(group, now + std::chrono::seconds(1), 3, 1), 300, 3);
  // 500 in all, and what leaks meanwhile.
  EXPECT_NEAR(passed(group, now + std::chrono::seconds(4), 20, 1), 90 + 24 * 10, 5);
}

TEST(ThrottleGroups, LargeRequestsCountAsSeveral) {
  Limits limits;
  limits.limits[Limits::requests_total].average = 100;
  limits.request_size = 4096;
  ThrottleGroup group(limits);
  EXPECT_NEAR(passed(group, ThrottleGroup::Clock::now(), 10, 16384), 253, 2);
}

TEST(ThrottleGroups, ContradictionsAreRefused) {
  ObjectTable objects;
  const auto create = [&](std::vector<std::pair<const char*, Value>> members) {
    Value::Dict options;
    options.set("qom-type", "throttle-group");
    options.set("id", "a");
    for (auto& [name, value] : members) options.set(name, std::move(value));
    try {
      objects.create(std::move(options));
    } catch (const Error& error) {
      return error.message();
    }
    return std::string("none");
  };
  EXPECT_NE(create({{"limits.iops-total", 1}, {"limits.iops-read", 1}}).find("excludes"),
            std::string::npos);
  EXPECT_NE(create({{"limits.bps-read-max", 1}}).find("needs 'bps-read'"), std::string::npos);
  EXPECT_NE(create({{"x-bps-read", 2}, {"x-bps-read-max", 1}}).find("below"), std::string::npos);
  EXPECT_NE(create({{"x-bps-read", 2}, {"x-bps-read-max-length", 2}}).find("needs"),
            std::string::npos);
  EXPECT_NE(create({{"x-bps-raed", 2}}).find("'limits.bps-raed' is unexpected"), std::string::npos);
  EXPECT_NE(create({{"x-bps-read", 2}, {"limits.bps-write", 2}}).find("exclude"),
            std::string::npos);
  EXPECT_EQ(objects.find("a"), nullptr);
  EXPECT_EQ(create({{"x-bps-read", "2"}}), "none");
  EXPECT_NE(objects.find("a"), nullptr);
  EXPECT_NE(create({}).find("already"), std::string::npos);
}

class FilterThrottle : public GraphTest {};

TEST_F(FilterThrottle, RequestsOfAllNodesOfAGroupWait) {
  MemoryDisk disks[2];
  Value::Dict group;
  group.set("qom-type", "throttle-group");
  group.set("id", "g");
  group.set("limits.iops-total", 100);
  context_.objects().create(std::move(group));
  std::unique_ptr<Child> roots[2];
  for (int i = 0; i < 2; ++i) {
    disks[i].bytes.resize(65536);
    Value::Dict options;
    options.set("driver", "throttle");
    options.set("throttle-group", "g");
    options.set("file", memory_options(disks[i]));
    roots[i] = open(std::move(options));
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::byte> bytes(512);
  for (int i = 0; i < 10; ++i) {
    for (auto& root : roots) run(root->read(GuestOffset(0), IoVec(std::span(bytes))));
  }
  // The first ten or so pass, the others come one in ten milliseconds.
  const auto elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_GT(elapsed, std::chrono::milliseconds(70));
  EXPECT_EQ(disks[0].reads + disks[1].reads, 20u);
  for (auto& root : roots) run(root->detach());
}

TEST_F(FilterThrottle, AGroupThatIsNotThereIsRefusedByName) {
  MemoryDisk disk;
  OpenRequest request;
  request.options.set("driver", "throttle");
  request.options.set("throttle-group", "nix");
  request.options.set("file", memory_options(disk));
  int code = 0;
  EXPECT_NE(failure(graph_.open_root(std::move(request)), &code).find("'nix'"), std::string::npos);
  EXPECT_EQ(code, EINVAL);
}

}  // namespace
}  // namespace vise
