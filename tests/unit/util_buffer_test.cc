// Aligned buffers and their pool.
#include "vise/buffer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "util/sanitizer.h"
#include "vise/error.h"
#include "vise/io_vec.h"

namespace vise {
namespace {

TEST(Buffer, EverySizeIsAlignedAndWritable) {
  for (const std::size_t size :
       {1ul, 512ul, 4095ul, 4096ul, 4097ul, 65536ul, 4ul << 20, (4ul << 20) + 1, 9ul << 20}) {
    Buffer buffer(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % Buffer::alignment, 0u);
    std::memset(buffer.data(), 0xaa, size);
  }
}

TEST(Buffer, AZeroedBufferIsZeroAlsoWhenItsMemoryWasUsedBefore) {
  for (int i = 0; i < 3; ++i) {
    Buffer buffer = Buffer::zeroed(10'000);
    EXPECT_TRUE(is_zero(buffer.span()));
    std::memset(buffer.data(), 0xaa, buffer.size());
  }
}

TEST(Buffer, FreedMemoryIsUsedAgain) {
  if (under_address_sanitizer) GTEST_SKIP() << "buffers are not pooled";
  const std::byte* first = nullptr;
  {
    Buffer buffer(60'000);
    first = buffer.data();
  }
  const Buffer again(65'536);
  EXPECT_EQ(again.data(), first);
}

TEST(Buffer, MovingHandsOver) {
  Buffer buffer(100);
  const std::byte* data = buffer.data();
  Buffer other = std::move(buffer);
  EXPECT_EQ(other.data(), data);
  EXPECT_TRUE(buffer.empty());  // NOLINT: moved-from buffers are empty
  other = Buffer();
  EXPECT_TRUE(other.empty());
  EXPECT_EQ(Buffer().size(), 0u);
  EXPECT_EQ(Buffer(0).data(), nullptr);
}

TEST(Buffer, MemoryThatIsNotThereIsAnError) {
  if (under_address_sanitizer || under_thread_sanitizer) GTEST_SKIP() << "the sanitizer aborts";
  try {
    const Buffer buffer(std::size_t{1} << 60);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ENOMEM);
  }
}

TEST(Buffer, MayBeFreedOnAnotherThread) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < 100; ++i) buffers.emplace_back(std::size_t{1} << (10 + i % 12));
  std::thread([&buffers] { buffers.clear(); }).join();
}

}  // namespace
}  // namespace vise
