// The event loop: posts from threads, timers, descriptors, fairness.
#include "vise/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <vector>

#include "vise/sync.h"

namespace vise {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

class Pipe {
 public:
  Pipe() {
    if (pipe2(ends_, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
  }
  ~Pipe() {
    close(ends_[0]);
    close(ends_[1]);
  }
  int read_end() const { return ends_[0]; }
  int write_end() const { return ends_[1]; }
  void put() const { ASSERT_EQ(write(ends_[1], "x", 1), 1); }

 private:
  int ends_[2];
};

Task<void> wait_for(AsyncEvent& event) { co_await event.wait(); }

TEST(EventLoop, PostsFromThreadsAllRunOnTheLoopsThread) {
  EventLoop loop;
  constexpr int threads = 4;
  constexpr int posts = 5000;
  const auto owner = std::this_thread::get_id();
  int count = 0;
  AsyncEvent done;
  std::vector<std::thread> posters;
  for (int i = 0; i < threads; ++i) {
    posters.emplace_back([&] {
      for (int j = 0; j < posts; ++j) {
        loop.post([&] {
          EXPECT_EQ(std::this_thread::get_id(), owner);
          if (++count == threads * posts) done.set();
        });
      }
    });
  }
  loop.run(wait_for(done));
  for (std::thread& poster : posters) poster.join();
  EXPECT_EQ(count, threads * posts);
}

TEST(EventLoop, PostsRunInOrder) {
  EventLoop loop;
  std::vector<int> order;
  AsyncEvent done;
  for (int i = 0; i < 10; ++i) loop.post([&order, i] { order.push_back(i); });
  loop.post([&] { done.set(); });
  loop.run(wait_for(done));
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

Task<void> sleep_and_note(milliseconds duration, std::vector<int>& order, int number) {
  co_await EventLoop::current().sleep(duration);
  order.push_back(number);
}

TEST(EventLoop, TimersFireInOrderAndNotEarly) {
  EventLoop loop;
  std::vector<int> order;
  std::vector<Task<void>> tasks;
  tasks.push_back(sleep_and_note(milliseconds(20), order, 2));
  tasks.push_back(sleep_and_note(milliseconds(10), order, 1));
  tasks.push_back(sleep_and_note(milliseconds(0), order, 0));
  const auto start = Clock::now();
  loop.run(when_all(std::move(tasks)));
  EXPECT_GE(Clock::now() - start, milliseconds(20));
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
}

TEST(EventLoop, SleepCountsBelowAMillisecond) {
  EventLoop loop;
  auto shortest = Clock::duration::max();
  for (int i = 0; i < 20; ++i) {
    const auto start = Clock::now();
    loop.run(loop.sleep(std::chrono::microseconds(50)));
    shortest = std::min<Clock::duration>(shortest, Clock::now() - start);
  }
  EXPECT_GE(shortest, std::chrono::microseconds(50));
  EXPECT_LT(shortest, milliseconds(1));
}

Task<void> read_one(const Pipe& pipe, AsyncEvent& waiting) {
  waiting.set();
  co_await EventLoop::current().readable(pipe.read_end());
  char byte = 0;
  EXPECT_EQ(read(pipe.read_end(), &byte, 1), 1);
}

Task<void> write_after(const Pipe& pipe, AsyncEvent& waiting) {
  co_await waiting.wait();
  co_await EventLoop::current().writable(pipe.write_end());
  pipe.put();
}

TEST(EventLoop, ReadableAndWritableWaitForTheDescriptor) {
  EventLoop loop;
  Pipe pipe;
  AsyncEvent waiting;
  std::vector<Task<void>> tasks;
  tasks.push_back(read_one(pipe, waiting));
  tasks.push_back(write_after(pipe, waiting));
  loop.run(when_all(std::move(tasks)));
}

TEST(EventLoop, AHangUpWakesTheReader) {
  EventLoop loop;
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  close(ends[1]);
  loop.run(loop.readable(ends[0]));
  close(ends[0]);
}

Task<void> spin(const bool& stop, long& turns) {
  while (!stop) {
    ++turns;
    co_await EventLoop::current().yield();
  }
}

Task<void> wait_for_all_kinds(const Pipe& pipe, bool& stop) {
  co_await EventLoop::current().sleep(milliseconds(1));
  pipe.put();
  co_await EventLoop::current().readable(pipe.read_end());
  AsyncEvent posted;
  EventLoop::current().post([&posted] { posted.set(); });
  co_await posted.wait();
  stop = true;
}

TEST(EventLoop, ABusyCoroutineStarvesNeitherTimersNorDescriptorsNorPosts) {
  EventLoop loop;
  Pipe pipe;
  bool stop = false;
  long turns = 0;
  std::vector<Task<void>> tasks;
  tasks.push_back(spin(stop, turns));
  tasks.push_back(spin(stop, turns));
  tasks.push_back(wait_for_all_kinds(pipe, stop));
  loop.run(when_all(std::move(tasks)));
  EXPECT_GT(turns, 2);
}

Task<void> note_turns(std::vector<int>& order, int number) {
  for (int turn = 0; turn < 3; ++turn) {
    order.push_back(number);
    co_await EventLoop::current().yield();
  }
}

TEST(EventLoop, YieldLetsTheOthersTakeTheirTurn) {
  EventLoop loop;
  std::vector<int> order;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(note_turns(order, i));
  loop.run(when_all(std::move(tasks)));
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 0, 1, 2, 0, 1, 2}));
}

TEST(EventLoop, EachThreadMayHaveItsOwn) {
  EventLoop loop;
  std::thread([&loop] {
    EventLoop other;
    EXPECT_EQ(&EventLoop::current(), &other);
    EXPECT_NE(&other, &loop);
    other.run(other.yield());
  }).join();
  EXPECT_EQ(&EventLoop::current(), &loop);
}

}  // namespace
}  // namespace vise
