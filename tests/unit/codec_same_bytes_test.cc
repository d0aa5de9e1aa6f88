// The same cluster becomes the same bytes, whatever the thread, its memory and what it did before.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <barrier>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "codec/codec.h"
#include "codec_fixture.h"

namespace vise::codec {
namespace {

class EachCodec : public testing::TestWithParam<Codec> {};

// Leaves `value` in the stack below, where the next callee has its variables.
[[gnu::noinline]] void fill_stack(std::uint16_t value) {
  volatile std::uint16_t stack[100000];
  for (volatile std::uint16_t& place : stack) place = value;
}

TEST_P(EachCodec, OutputDoesNotDependOnWhatMemoryHeld) {
  std::string text;  // repeats from far away and near
  std::mt19937 random(11);
  while (text.size() < 65536) text += fmt::format("{:x}{:x} ", random() % 300, random() % 17);
  const auto* const bytes = reinterpret_cast<const std::byte*>(text.data());
  const Bytes cluster(bytes, bytes + 65536);
  for (const int level : {default_level, fastest, 1, 2}) {
    Bytes first;
    for (const std::uint16_t value : {0, 8, 10, 12}) {
      fill_stack(value);
      const Bytes stored = stored_form(GetParam(), level, cluster);
      if (first.empty()) first = stored;
      EXPECT_TRUE(stored == first) << "level " << level << ", memory of " << value;
    }
  }
}

TEST_P(EachCodec, OutputDoesNotDependOnTheThread) {
  // Small clusters whose begin comes again: libisal's streams of some in 3,000 of them depended on
  // an address, which is another on each thread.
  std::mt19937 random(12);
  std::vector<Bytes> clusters(10000);
  for (Bytes& cluster : clusters) {
    std::string text(random() % 20, '\0');
    while (text.size() < 512) text += fmt::format("{:x} ", random() % 700);
    const auto* const bytes = reinterpret_cast<const std::byte*>(text.data());
    cluster.assign(bytes, bytes + 512);
  }
  std::array<std::vector<Bytes>, 4> stored;
  std::barrier all_there(stored.size());  // none gives its memory to the next
  {
    std::vector<std::jthread> threads;
    for (std::vector<Bytes>& mine : stored) {
      threads.emplace_back([&] {
        for (const Bytes& cluster : clusters) {
          mine.push_back(stored_form(GetParam(), fastest, cluster));
        }
        all_there.arrive_and_wait();
      });
    }
  }
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    for (const std::vector<Bytes>& mine : stored) {
      ASSERT_EQ(mine[i], stored[0][i]) << "cluster " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EachCodec, testing::Values(Codec::deflate, Codec::zstd));

}  // namespace
}  // namespace vise::codec
