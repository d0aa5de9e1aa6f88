// Awaitable mutex, semaphore, event, queue; scopes and when_all.
#include "vise/sync.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace vise {
namespace {

Task<void> turns(int count) {
  for (int i = 0; i < count; ++i) co_await EventLoop::current().yield();
}

class SyncTest : public testing::Test {
 protected:
  void run_all(std::vector<Task<void>>& tasks) { loop_.run(when_all(std::move(tasks))); }
  EventLoop loop_;
};

struct Critical {
  AsyncMutex mutex;
  int inside = 0;
  std::vector<int> order;
};

Task<void> enter(Critical& critical, int number) {
  const AsyncMutex::Guard guard = co_await critical.mutex.lock();
  EXPECT_EQ(++critical.inside, 1);
  critical.order.push_back(number);
  co_await turns(3);
  --critical.inside;
}

TEST_F(SyncTest, AMutexLetsOneInAtATimeInOrderOfArrival) {
  Critical critical;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 5; ++i) tasks.push_back(enter(critical, i));
  run_all(tasks);
  EXPECT_EQ(critical.order, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(critical.mutex.locked());
}

Task<void> relock(Critical& critical, int number, int count) {
  for (int i = 0; i < count; ++i) {
    const AsyncMutex::Guard guard = co_await critical.mutex.lock();
    critical.order.push_back(number);
  }
}

TEST_F(SyncTest, WhoLocksAgainAtOnceDoesNotOvertakeTheWaiting) {
  Critical critical;
  std::vector<Task<void>> tasks;
  tasks.push_back(enter(critical, 0));
  tasks.push_back(relock(critical, 1, 2));
  tasks.push_back(relock(critical, 2, 2));
  run_all(tasks);
  EXPECT_EQ(critical.order, (std::vector<int>{0, 1, 2, 1, 2}));
}

TEST_F(SyncTest, AGuardCanBeMovedAndUnlockedEarly) {
  AsyncMutex mutex;
  AsyncMutex::Guard guard;
  EXPECT_TRUE(mutex.lock().await_ready());
  guard = AsyncMutex::Guard(mutex);
  AsyncMutex::Guard other = std::move(guard);
  guard.unlock();
  EXPECT_TRUE(mutex.locked());
  other.unlock();
  EXPECT_FALSE(mutex.locked());
}

struct Limited {
  explicit Limited(std::uint64_t units) : semaphore(units) {}
  AsyncSemaphore semaphore;
  std::uint64_t used = 0;
  std::uint64_t most = 0;
  std::vector<std::uint64_t> order;
};

Task<void> take(Limited& limited, std::uint64_t units) {
  co_await limited.semaphore.acquire(units);
  limited.order.push_back(units);
  limited.used += units;
  limited.most = std::max(limited.most, limited.used);
  co_await turns(2);
  limited.used -= units;
  limited.semaphore.release(units);
}

TEST_F(SyncTest, ASemaphoreBoundsWhatIsTakenAndStarvesNobody) {
  Limited limited(4);
  std::vector<Task<void>> tasks;
  for (const std::uint64_t units : {2u, 1u, 4u, 1u, 1u, 3u}) tasks.push_back(take(limited, units));
  run_all(tasks);
  EXPECT_LE(limited.most, 4u);
  EXPECT_EQ(limited.order, (std::vector<std::uint64_t>{2, 1, 4, 1, 1, 3}));
  EXPECT_EQ(limited.semaphore.available(), 4u);
}

Task<void> take_too_many(Limited& limited) {
  co_await limited.semaphore.acquire(100);
  EXPECT_EQ(limited.semaphore.available(), 0u);
  limited.semaphore.release(100);
}

TEST_F(SyncTest, MoreThanThereIsTakesAll) {
  Limited limited(4);
  std::vector<Task<void>> tasks;
  tasks.push_back(take(limited, 1));
  tasks.push_back(take_too_many(limited));
  run_all(tasks);
  EXPECT_EQ(limited.semaphore.available(), 4u);
}

Task<void> count_after(AsyncEvent& event, int& count) {
  co_await event.wait();
  ++count;
}

Task<void> set_later(AsyncEvent& event) {
  co_await turns(3);
  event.set();
}

TEST_F(SyncTest, AnEventLetsPresentAndFutureWaitersThrough) {
  AsyncEvent event;
  int count = 0;
  std::vector<Task<void>> tasks;
  tasks.push_back(count_after(event, count));
  tasks.push_back(count_after(event, count));
  tasks.push_back(set_later(event));
  run_all(tasks);
  EXPECT_EQ(count, 2);
  loop_.run(count_after(event, count));
  EXPECT_EQ(count, 3);
}

Task<void> produce(AsyncQueue<std::unique_ptr<int>>& queue, int count, std::size_t& longest) {
  for (int i = 0; i < count; ++i) {
    auto value = std::make_unique<int>(i);
    co_await queue.push(std::move(value));
    longest = std::max(longest, queue.size());
  }
  queue.close();
}

Task<void> consume(AsyncQueue<std::unique_ptr<int>>& queue, std::vector<int>& values) {
  for (;;) {
    const std::optional<std::unique_ptr<int>> value = co_await queue.pop();
    if (!value) co_return;
    values.push_back(**value);
  }
}

TEST_F(SyncTest, AQueueKeepsOrderAndCapacity) {
  AsyncQueue<std::unique_ptr<int>> queue(3);
  std::vector<int> values;
  std::size_t longest = 0;
  std::vector<Task<void>> tasks;
  tasks.push_back(produce(queue, 100, longest));
  tasks.push_back(consume(queue, values));
  run_all(tasks);
  ASSERT_EQ(values.size(), 100u);
  EXPECT_TRUE(std::is_sorted(values.begin(), values.end()));
  EXPECT_LE(longest, 3u);
}

TEST_F(SyncTest, SeveralConsumersShareAQueueAndAllSeeItClose) {
  AsyncQueue<std::unique_ptr<int>> queue(2);
  std::vector<int> values;
  std::size_t longest = 0;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(consume(queue, values));
  tasks.push_back(produce(queue, 50, longest));
  run_all(tasks);
  EXPECT_EQ(values.size(), 50u);
}

Task<void> fail_after(int count, std::string text) {
  co_await turns(count);
  throw Error(EIO, text);
}

Task<void> finish_after(int count, bool& finished) {
  co_await turns(count);
  finished = true;
}

TEST_F(SyncTest, WhenAllWaitsForAllAndThrowsTheFirstFailure) {
  bool finished = false;
  std::vector<Task<void>> tasks;
  tasks.push_back(fail_after(5, "second"));
  tasks.push_back(fail_after(1, "first"));
  tasks.push_back(finish_after(20, finished));
  try {
    run_all(tasks);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.message(), "first");
  }
  EXPECT_TRUE(finished);
}

TEST_F(SyncTest, WhenAllOfNothingIsDone) {
  std::vector<Task<void>> tasks;
  run_all(tasks);
}

Task<void> spawn_more(TaskScope& scope, int depth, int& count) {
  ++count;
  co_await turns(1);
  if (depth > 0) {
    scope.spawn(spawn_more(scope, depth - 1, count));
    scope.spawn(spawn_more(scope, depth - 1, count));
  }
}

Task<void> join_tree(int& count) {
  TaskScope scope;
  scope.spawn(spawn_more(scope, 4, count));
  co_await scope.join();
  EXPECT_EQ(scope.running(), 0u);
}

TEST_F(SyncTest, AScopeWaitsAlsoForTasksSpawnedMeanwhile) {
  int count = 0;
  loop_.run(join_tree(count));
  EXPECT_EQ(count, 31);
}

Task<std::string> join_twice() {
  TaskScope scope;
  scope.spawn(fail_after(0, "failed at once"));
  EXPECT_FALSE(scope.running() == 0 && !scope.failed());
  std::string message;
  try {
    co_await scope.join();
  } catch (const Error& error) {
    message = error.message();
  }
  bool finished = false;
  scope.spawn(finish_after(2, finished));
  co_await scope.join();
  EXPECT_TRUE(finished);
  co_return message;
}

TEST_F(SyncTest, AScopeCanBeUsedAgainAfterAFailedJoin) {
  EXPECT_EQ(loop_.run(join_twice()), "failed at once");
}

Task<void> wait_in(WaitQueue& queue, std::vector<int>& order, int number) {
  co_await queue.wait();
  order.push_back(number);
}

Task<void> wake_in_steps(WaitQueue& queue, std::vector<int>& order) {
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_TRUE(queue.wake_one());
  EXPECT_TRUE(order.empty()) << "woken inline";
  co_await turns(1);
  EXPECT_EQ(order, std::vector<int>{0});
  queue.wake_all();
  EXPECT_FALSE(queue.wake_one());
}

TEST_F(SyncTest, AWaitQueueWakesInOrderAndThroughTheLoop) {
  WaitQueue queue;
  std::vector<int> order;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(wait_in(queue, order, i));
  tasks.push_back(wake_in_steps(queue, order));
  run_all(tasks);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
}

}  // namespace
}  // namespace vise
