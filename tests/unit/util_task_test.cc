// Task<T>: laziness, values, exceptions, flat stack.
#include "vise/task.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "vise/event_loop.h"
#include "vise/sync.h"

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

Task<int> one_later() {
  co_await EventLoop::current().yield();
  co_return 1;
}

Task<long> sum_of_suspending_tasks(long count) {
  long sum = 0;
  for (long i = 0; i < count; ++i) {
    const int value = co_await one_later();
    sum += value;
  }
  co_return sum;
}

TEST(Task, ManySuspendingAwaitsDoNotGrowTheStack) {
  EventLoop loop;
  EXPECT_EQ(loop.run(sum_of_suspending_tasks(100'000)), 100'000);
}

Task<void> set(bool& flag) {
  flag = true;
  co_return;
}

TEST(Task, NothingRunsBeforeItIsAwaited) {
  EventLoop loop;
  bool ran = false;
  {
    Task<void> dropped = set(ran);
    EXPECT_TRUE(dropped.valid());
  }
  EXPECT_FALSE(ran);
  loop.run(set(ran));
  EXPECT_TRUE(ran);
}

Task<void> hold(std::shared_ptr<int>) { co_return; }

TEST(Task, ATaskThatNeverRanFreesItsArguments) {
  const auto value = std::make_shared<int>(1);
  {
    Task<void> task = hold(value);
    EXPECT_EQ(value.use_count(), 2);
    Task<void> other = std::move(task);
    EXPECT_FALSE(task.valid());
    other = Task<void>();
    EXPECT_EQ(value.use_count(), 1);
  }
}

Task<std::unique_ptr<int>> make_value(bool later) {
  if (later) co_await EventLoop::current().yield();
  co_return std::make_unique<int>(7);
}

TEST(Task, MoveOnlyValuesPassThrough) {
  EventLoop loop;
  EXPECT_EQ(*loop.run(make_value(false)), 7);
  EXPECT_EQ(*loop.run(make_value(true)), 7);
}

Task<int> fail(bool later) {
  if (later) co_await EventLoop::current().yield();
  throw Error(EIO, "broken");
}

Task<int> pass_through(bool later) {
  const int value = co_await fail(later).context("inner");
  co_return value;
}

TEST(Task, ExceptionsPassThroughAndGatherContext) {
  EventLoop loop;
  for (const bool later : {false, true}) {
    try {
      loop.run(pass_through(later).context(std::string("outer")));
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), EIO);
      EXPECT_STREQ(error.what(), "outer: inner: broken");
    }
  }
}

Task<std::string> catch_it(bool later) {
  std::string text = "nothing";
  try {
    const int value = co_await fail(later);
    text = std::to_string(value);
  } catch (const Error& error) {
    text = error.message();
  }
  co_await EventLoop::current().yield();
  co_return text;
}

TEST(Task, ACaughtExceptionDoesNotEndTheTask) {
  EventLoop loop;
  EXPECT_EQ(loop.run(catch_it(false)), "broken");
  EXPECT_EQ(loop.run(catch_it(true)), "broken");
}

Task<int> context_of_a_success() {
  const int value = co_await one().context("unused");
  co_return value;
}

TEST(Task, ContextLeavesASuccessAlone) {
  EventLoop loop;
  EXPECT_EQ(loop.run(context_of_a_success()), 1);
}

struct CountsLives {
  explicit CountsLives(int& lives) : lives(&lives) { ++lives; }
  CountsLives(const CountsLives& other) : lives(other.lives) { ++*lives; }
  ~CountsLives() { --*lives; }
  int* lives;
};

Task<void> use(CountsLives, bool later) {
  if (later) co_await EventLoop::current().yield();
}

Task<void> use_in_turn(int& lives) {
  for (const bool later : {false, true}) {
    const CountsLives mine(lives);
    co_await use(mine, later);
    co_await use(CountsLives(lives), later);
  }
}

TEST(Task, ArgumentsLiveExactlyOnce) {
  EventLoop loop;
  int lives = 0;
  loop.run(use_in_turn(lives));
  EXPECT_EQ(lives, 0);
}

}  // namespace
}  // namespace vise
