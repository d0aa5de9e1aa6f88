// The tools of the crash tests themselves, on the simplest format there is: a good disk passes, a
// disk that forgets flushes is found out.
#include <gtest/gtest.h>

#include "crash/rig.h"

namespace vise::crash {
namespace {

std::vector<std::byte> bytes(std::size_t length, int value) {
  return std::vector<std::byte>(length, static_cast<std::byte>(value));
}

std::vector<std::byte> read_all(const Image& image) {
  std::vector<std::byte> data(image.size());
  image.read(0, data);
  return data;
}

TEST(Image, CopiesDoNotShareWhatIsWrittenLater) {
  Image first;
  first.write(4000, bytes(5000, 1));
  const Image copy = first;
  first.write(4096, bytes(1, 2));
  first.write(20000, bytes(1, 3));
  EXPECT_EQ(first.size(), 20001u);
  EXPECT_EQ(copy.size(), 9000u);
  EXPECT_EQ(read_all(copy)[4096], std::byte{1});
  EXPECT_EQ(read_all(first)[4096], std::byte{2});
  EXPECT_EQ(read_all(first)[15000], std::byte{0});
}

TEST(Image, WhatWasCutOffReadsAsZerosWhenItComesBack) {
  Image image;
  image.write(0, bytes(10000, 1));
  image.resize(5000);
  image.resize(10000);
  const auto data = read_all(image);
  EXPECT_EQ(data[4999], std::byte{1});
  EXPECT_EQ(data[5000], std::byte{0});
  EXPECT_EQ(data[9999], std::byte{0});
}

class ModelTest : public testing::Test {
 protected:
  Model::Request write(Content content) {
    return model_.begin(0, sector_size, content, Model::Effect::surely);
  }
  bool allows(Content content, std::uint64_t time) const {
    std::vector<std::byte> data(sector_size);
    fill(data, 0, content);
    return model_.compare(0, data, time).empty();
  }
  Clock clock_;
  Model model_{clock_, 4096};
};

TEST_F(ModelTest, AnUnflushedWriteIsThereOrNot) {
  model_.complete(write(model_.next_content()), false);
  const std::uint64_t now = clock_.tick();
  EXPECT_TRUE(allows(0, now));
  EXPECT_TRUE(allows(1, now));
  EXPECT_FALSE(allows(2, now));
  EXPECT_FALSE(allows(0, never));
}

TEST_F(ModelTest, AFlushCoversWhatCompletedBeforeItWasSent) {
  model_.complete(write(model_.next_content()), false);
  const std::uint64_t sent = clock_.tick();
  const std::uint64_t before = clock_.tick();
  model_.complete(write(model_.next_content()), false);
  model_.complete_flush(sent);
  const std::uint64_t after = clock_.tick();
  EXPECT_TRUE(allows(0, before));
  EXPECT_FALSE(allows(2, before)) << "not sent yet";
  EXPECT_FALSE(allows(0, after));
  EXPECT_TRUE(allows(1, after));
  EXPECT_TRUE(allows(2, after));
}

TEST_F(ModelTest, AFailedWriteMayBeThereUntilTheNextOne) {
  model_.fail(write(model_.next_content()));
  model_.complete_flush(clock_.tick());
  EXPECT_TRUE(allows(0, clock_.tick()));
  EXPECT_TRUE(allows(1, clock_.tick()));
  model_.complete(write(model_.next_content()), true);
  EXPECT_FALSE(allows(0, clock_.tick()));
  EXPECT_FALSE(allows(1, clock_.tick()));
  EXPECT_TRUE(allows(2, clock_.tick()));
}

TEST_F(ModelTest, ADiscardLeavesTheOldContentOrZeros) {
  model_.complete(write(model_.next_content()), false);
  model_.complete(model_.begin(0, sector_size, 0, Model::Effect::possibly), false);
  model_.complete_flush(clock_.tick());
  EXPECT_TRUE(allows(0, clock_.tick()));
  EXPECT_TRUE(allows(1, clock_.tick()));
}

TEST_F(ModelTest, ASectorInAWrongPlaceIsNoticed) {
  model_.complete(model_.begin(0, 2 * sector_size, model_.next_content(), Model::Effect::surely),
                  true);
  std::vector<std::byte> data(2 * sector_size);
  fill(data, 0, 1);
  EXPECT_EQ(model_.compare(0, data, never), "");
  EXPECT_NE(model_.compare(sector_size, std::span(data).first(sector_size), never), "");
}

TEST(Replay, EveryStateHasWhatWasFlushedAndNothingOfTheFuture) {
  Clock clock;
  std::vector<HostEvent> log;
  for (std::uint64_t i = 0; i < 10; ++i) {
    HostEvent write;
    write.offset = i * sector_size;
    write.length = sector_size;
    write.data = bytes(sector_size, static_cast<int>(i + 1));
    write.issued = clock.tick();
    write.completed = clock.tick();
    log.push_back(write);
    if (i != 4) continue;
    HostEvent flush;
    flush.kind = HostEvent::Kind::flush;
    flush.issued = clock.tick();
    flush.completed = clock.tick();
    log.push_back(flush);
  }
  std::mt19937_64 random(1);
  unsigned states = 0;
  bool all_there = false;
  for_each_state(Image(), log, clock.now(), {5, 5}, random, [&](const State& state) {
    ++states;
    std::vector<std::byte> data(10 * sector_size);
    state.image.read(0, data);
    std::size_t there = 0;
    for (std::size_t i = 0; i < 10; ++i) {
      const bool is_there = data[i * sector_size] == static_cast<std::byte>(i + 1);
      const bool flushed = i < 5 && state.time > 12;
      const bool in_future = i >= 5 && state.time <= 12;
      EXPECT_TRUE(is_there || !flushed) << state.description;
      EXPECT_FALSE(is_there && in_future) << state.description;
      if (is_there) ++there;
    }
    all_there = all_there || there == 10;
    return true;
  });
  EXPECT_GT(states, 15u);
  EXPECT_TRUE(all_there);
}

TEST(RawFormat, LosesNothingThatWasFlushed) {
  Rig rig({.name = "raw", .format = "raw"});
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    ASSERT_EQ(rig.crash_and_examine(seed, 150, {}), "");
  }
}

TEST(RawFormat, ADiskThatForgetsFlushesIsFoundOut) {
  Rig rig({.name = "raw", .format = "raw", .forget_flushes = true});
  EXPECT_NE(rig.crash_and_examine(1, 150, {}), "");
}

TEST(RawFormat, FailedRequestsHarmNothingThatWasFlushed) {
  Rig rig({.name = "raw", .format = "raw"});
  EXPECT_EQ(rig.fail_each({.target = Disk::Fault::Target::write}, 1, 40), "");
  EXPECT_EQ(rig.fail_each({.target = Disk::Fault::Target::flush}, 1, 40), "");
}

}  // namespace
}  // namespace vise::crash
