// Coroutine frames: those of short-lived tasks do not cost a malloc each.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "util/sanitizer.h"
#include "vise/event_loop.h"
#include "vise/task.h"

// Sanitizers have their own malloc, and frames are not pooled under AddressSanitizer.
constexpr bool counts_mallocs = !vise::under_address_sanitizer && !vise::under_thread_sanitizer;

namespace {
std::atomic<long> mallocs{0};
}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
extern "C" void* __libc_malloc(std::size_t size);
extern "C" void* malloc(std::size_t size) {
  mallocs.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
#endif

namespace vise {
namespace {

Task<int> leaf(bool later) {
  if (later) co_await EventLoop::current().yield();
  co_return 1;
}

Task<int> branch(bool later) {
  const int left = co_await leaf(later);
  const int right = co_await leaf(later);
  co_return left + right;
}

Task<long> many_branches(int count, bool later) {
  long sum = 0;
  for (int i = 0; i < count; ++i) {
    const int value = co_await branch(later);
    sum += value;
  }
  co_return sum;
}

TEST(FramePool, FramesOfShortLivedTasksDoNotCostAMallocEach) {
  if (!counts_mallocs) GTEST_SKIP() << "a sanitizer owns malloc";
  EventLoop loop;
  for (const bool later : {false, true}) {
    loop.run(many_branches(10, later));
    const long before = mallocs.load();
    EXPECT_EQ(loop.run(many_branches(10'000, later)), 20'000);
    // 30000 frames. What is left is GLib's and the queue's, which does not depend on their number
    // when they do not suspend.
    EXPECT_LT(mallocs.load() - before, later ? 3000 : 20);
  }
}

TEST(FramePool, AFrameMayBeFreedOnAnotherThread) {
  Task<int> task = leaf(false);
  std::thread([&task] { task = Task<int>(); }).join();
  EXPECT_FALSE(task.valid());
}

TEST(FramePool, LargeFramesAreFreedToo) {
  void* frame = task_detail::allocate_frame(1 << 20);
  ASSERT_NE(frame, nullptr);
  task_detail::free_frame(frame, 1 << 20);
}

}  // namespace
}  // namespace vise
