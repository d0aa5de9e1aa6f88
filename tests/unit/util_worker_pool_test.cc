// The worker pool: every job once, exceptions, results on the loop.
#include "vise/worker_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "vise/sync.h"

namespace vise {
namespace {

class WorkerPoolTest : public testing::TestWithParam<unsigned> {
 protected:
  EventLoop loop_;
  WorkerPool pool_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Threads, WorkerPoolTest, testing::Values(1u, 2u, 8u));

Task<void> run_job(WorkerPool& pool, std::atomic<int>& count, std::thread::id owner) {
  std::function<void()> job = [&count, owner] {
    EXPECT_NE(std::this_thread::get_id(), owner);
    ++count;
  };
  co_await pool.run(std::move(job));
  EXPECT_EQ(std::this_thread::get_id(), owner);
}

Task<void> run_jobs(WorkerPool& pool, int jobs, std::atomic<int>& count) {
  TaskScope scope;
  for (int i = 0; i < jobs; ++i) scope.spawn(run_job(pool, count, std::this_thread::get_id()));
  co_await scope.join();
}

TEST_P(WorkerPoolTest, JobsRunOnWorkersAndContinueOnTheLoop) {
  std::atomic<int> count{0};
  loop_.run(run_jobs(pool_, 2000, count));
  EXPECT_EQ(count, 2000);
}

TEST_P(WorkerPoolTest, ForEachRunsEveryIndexOnce) {
  for (const std::size_t size : {0u, 1u, 2u, 7u, 1000u}) {
    std::vector<std::atomic<int>> runs(size);
    loop_.run(pool_.for_each(size, [&runs](std::size_t i) { ++runs[i]; }));
    for (const auto& count : runs) EXPECT_EQ(count, 1);
  }
}

TEST_P(WorkerPoolTest, AnExceptionOfAJobComesOutOfTheAwait) {
  EXPECT_THROW(loop_.run(pool_.run([] { throw Error(EIO, "broken"); })), Error);
  std::atomic<int> runs{0};
  try {
    loop_.run(pool_.for_each(100, [&runs](std::size_t i) {
      ++runs;
      if (i == 42) throw std::runtime_error("42");
    }));
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "42");
  }
  EXPECT_EQ(runs, 100);
}

TEST_P(WorkerPoolTest, ASingleJobRunsHereWhenAllowed) {
  std::thread::id here;
  loop_.run(pool_.for_each(
      1, [&here](std::size_t) { here = std::this_thread::get_id(); }, WorkerPool::Single::here));
  EXPECT_EQ(here, std::this_thread::get_id());
  loop_.run(pool_.for_each(1, [&here](std::size_t) { here = std::this_thread::get_id(); }));
  EXPECT_NE(here, std::this_thread::get_id());
}

Task<void> for_each_of(WorkerPool& pool, std::atomic<int>& count) {
  std::function<void(std::size_t)> job = [&count](std::size_t) { ++count; };
  co_await pool.for_each(10, std::move(job));
}

Task<void> many_for_each(WorkerPool& pool, std::atomic<int>& count) {
  TaskScope scope;
  for (int i = 0; i < 500; ++i) scope.spawn(for_each_of(pool, count));
  co_await scope.join();
}

TEST_P(WorkerPoolTest, ManyForEachAtOnceAllEnd) {
  std::atomic<int> count{0};
  loop_.run(many_for_each(pool_, count));
  EXPECT_EQ(count, 5000);
}

// Two jobs that each wait for the other to have begun need two threads at the same time.
TEST(WorkerPool, JobsOfOneForEachRunAtTheSameTime) {
  EventLoop loop;
  WorkerPool pool(2);
  std::atomic<int> begun{0};
  loop.run(pool.for_each(2, [&begun](std::size_t) {
    ++begun;
    while (begun < 2) std::this_thread::yield();
  }));
  EXPECT_EQ(begun, 2);
}

Task<void> run_two(WorkerPool& pool, std::atomic<bool>& release, int& turns) {
  TaskScope scope;
  std::function<void()> wait = [&release] {
    while (!release) std::this_thread::yield();
  };
  scope.spawn(pool.run(wait));
  // Jobs that end while the loop is busy elsewhere come back together.
  for (int i = 0; i < 10; ++i) {
    ++turns;
    co_await EventLoop::current().yield();
  }
  release = true;
  co_await scope.join();
}

TEST(WorkerPool, TheLoopGoesOnWhileWorkersWork) {
  EventLoop loop;
  WorkerPool pool(1);
  std::atomic<bool> release{false};
  int turns = 0;
  loop.run(run_two(pool, release, turns));
  EXPECT_EQ(turns, 10);
}

TEST(WorkerPool, ThereIsAtLeastOneThread) {
  EventLoop loop;
  WorkerPool pool;
  EXPECT_GE(pool.threads(), 1u);
  EXPECT_LE(pool.threads(), 64u);
}

}  // namespace
}  // namespace vise
