// Task<T>: laziness, exceptions, flat stack.
#include "vise/task.h"

#include <gtest/gtest.h>

#include "vise/event_loop.h"

namespace vise {
namespace {

Task<int> one() { co_return 1; }

Task<long> sum_of_ready_tasks(long count) {
  long sum = 0;
  for (long i = 0; i < count; ++i) {
    const int value = co_await one();
    sum += value;
  }
  co_return sum;
}

TEST(Task, TwoMillionReadyAwaitsDoNotGrowTheStack) {
  EventLoop loop;
  EXPECT_EQ(loop.run(sum_of_ready_tasks(2'000'000)), 2'000'000);
}

}  // namespace
}  // namespace vise
