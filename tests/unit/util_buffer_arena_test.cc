// The buddy allocator behind large buffers.
#include "util/buffer_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "vise/buffer.h"

namespace vise {
namespace {

constexpr std::size_t smallest = BufferArena::smallest;
constexpr std::size_t largest = BufferArena::largest;

TEST(BufferArena, HalvesServeSmallerBlocksAndComeTogetherAgain) {
  BufferArena arena;
  std::vector<std::byte*> blocks;
  for (std::size_t i = 0; i < largest / smallest; ++i) blocks.push_back(arena.allocate(smallest));
  EXPECT_EQ(arena.held(), largest);
  std::byte* const lowest = *std::ranges::min_element(blocks);
  for (std::byte* block : blocks) arena.free(block, smallest);
  EXPECT_EQ(arena.allocate(largest), lowest) << "the same memory as a whole";
  EXPECT_EQ(arena.held(), largest);
  arena.free(lowest, largest);
}

TEST(BufferArena, MemoryThatWasUsedIsUsedAgainForOtherSizes) {
  BufferArena arena;
  std::byte* const block = arena.allocate(2u << 20);
  arena.free(block, 2u << 20);
  std::byte* const small = arena.allocate(smallest);
  std::byte* const medium = arena.allocate(1u << 20);
  EXPECT_EQ(arena.held(), largest);
  EXPECT_EQ(small, block);
  arena.free(small, smallest);
  arena.free(medium, 1u << 20);
}

TEST(BufferArena, RandomBlocksNeverOverlapAndMemoryGoesBackToTheSystem) {
  BufferArena arena;
  std::mt19937_64 random(1);
  struct Block {
    std::size_t size;
    unsigned char mark;
  };
  std::map<std::byte*, Block> blocks;
  const auto release = [&](std::map<std::byte*, Block>::iterator block) {
    const auto mark = static_cast<std::byte>(block->second.mark);
    for (std::size_t i = 0; i < block->second.size; i += 4096) ASSERT_EQ(block->first[i], mark);
    ASSERT_EQ(block->first[block->second.size - 1], mark);
    arena.free(block->first, block->second.size);
    blocks.erase(block);
  };
  std::size_t in_use = 0;
  std::size_t most_in_use = 0;
  for (int i = 0; i < 20'000; ++i) {
    if (blocks.size() < 60 && random() % 2 == 0) {
      const std::size_t size = smallest << random() % 7;
      std::byte* const data = arena.allocate(size);
      ASSERT_NE(data, nullptr);
      ASSERT_EQ(reinterpret_cast<std::uintptr_t>(data) % Buffer::alignment, 0u);
      const auto mark = static_cast<unsigned char>(random());
      for (std::size_t at = 0; at < size; at += 4096) data[at] = static_cast<std::byte>(mark);
      data[size - 1] = static_cast<std::byte>(mark);
      ASSERT_TRUE(blocks.try_emplace(data, Block{size, mark}).second);
      in_use += size;
      most_in_use = std::max(most_in_use, in_use);
    } else if (!blocks.empty()) {
      const auto block =
          std::next(blocks.begin(), static_cast<std::ptrdiff_t>(random() % blocks.size()));
      in_use -= block->second.size;
      release(block);
    }
  }
  EXPECT_LE(arena.held(), 2 * most_in_use + 8 * largest);
  while (!blocks.empty()) release(blocks.begin());
  EXPECT_EQ(arena.held(), 8 * largest) << "what is kept for the next burst";
}

}  // namespace
}  // namespace vise
