// Worker threads. Finished jobs collect in a list; the loop is woken once for all of them. The
// threads start with the first job: most subcommands of vise-img never have one.
#include "vise/worker_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <condition_variable>
#include <coroutine>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "vise/error.h"

namespace vise {

namespace {

unsigned usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::clamp(CPU_COUNT(&set), 1, 64);
}

// One call of run() or for_each(). Lives in the awaiting coroutine's frame.
struct Job {
  std::function<void(std::size_t)> function;
  std::size_t count = 0;
  std::size_t chunk = 1;
  std::atomic<std::size_t> next{0};  // first index not taken yet
  std::atomic<unsigned> pending{0};  // workers that still have to leave the job
  std::mutex mutex;
  std::exception_ptr exception;  // the first; guarded by mutex
  EventLoop* loop = nullptr;
  std::coroutine_handle<> waiter;

  void work() noexcept {
    for (;;) {
      const std::size_t from = next.fetch_add(chunk, std::memory_order_relaxed);
      if (from >= count) return;
      const std::size_t to = std::min(count, from + chunk);
      for (std::size_t i = from; i < to; ++i) {
        try {
          function(i);
        } catch (...) {
          std::lock_guard<std::mutex> guard(mutex);
          if (!exception) exception = std::current_exception();
        }
      }
    }
  }
};

}  // namespace

class WorkerPool::Impl {
 public:
  explicit Impl(unsigned count) : count_(count == 0 ? usable_cores() : count) {}

  ~Impl() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      assert(queue_.empty());
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  unsigned threads() const { return count_; }

  // Before the first job. Fewer threads than asked for are slower but do; none is an error.
  void start() {
    std::lock_guard<std::mutex> guard(mutex_);
    if (!threads_.empty()) return;
    threads_.reserve(count_);
    for (unsigned i = 0; i < count_; ++i) {
      try {
        threads_.emplace_back([this] { serve(); });
      } catch (const std::system_error& error) {
        if (!threads_.empty()) return;
        throw Error::system_error(error.code().value(), "Could not start a worker thread");
      }
    }
  }

  // Puts the job into the queue once per worker that shall help with it.
  void submit(Job& job, unsigned helpers) {
    job.pending.store(helpers, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> guard(mutex_);
      for (unsigned i = 0; i < helpers; ++i) queue_.push_back(&job);
    }
    if (helpers == 1) {
      work_.notify_one();
    } else {
      work_.notify_all();
    }
  }

 private:
  void serve() {
    pthread_setname_np(pthread_self(), "vise-worker");
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      Job* job = queue_.front();
      queue_.pop_front();
      lock.unlock();
      job->work();
      if (job->pending.fetch_sub(1, std::memory_order_acq_rel) == 1) finished(*job);
      lock.lock();
    }
  }

  // post() wakes the loop only if nothing is waiting there yet, which makes the batches.
  static void finished(Job& job) {
    const auto waiter = job.waiter;
    job.loop->post([waiter] { waiter.resume(); });
  }

  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Job*> queue_;  // guarded by mutex_
  bool stop_ = false;       // guarded by mutex_
  const unsigned count_;
  std::vector<std::thread> threads_;  // guarded by mutex_ until they have started
};

namespace {

template <class Pool>
struct JobAwaiter {
  Pool& pool;
  Job& job;
  unsigned helpers;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    job.waiter = handle;
    job.loop = &EventLoop::current();
    pool.submit(job, helpers);
  }
  void await_resume() const {
    if (job.exception) std::rethrow_exception(job.exception);
  }
};

}  // namespace

WorkerPool::WorkerPool(unsigned threads) : impl_(std::make_unique<Impl>(threads)) {}
WorkerPool::~WorkerPool() = default;

unsigned WorkerPool::threads() const { return impl_->threads(); }

Task<void> WorkerPool::run(std::function<void()> job) {
  impl_->start();
  Job state;
  state.function = [&job](std::size_t) { job(); };
  state.count = 1;
  co_await JobAwaiter<Impl>{*impl_, state, 1};
}

Task<void> WorkerPool::for_each(std::size_t count, std::function<void(std::size_t)> job,
                                Single single) {
  if (count == 0) co_return;
  if (count == 1 && single == Single::here) {
    job(0);
    co_return;
  }
  impl_->start();
  Job state;
  state.function = std::move(job);
  state.count = count;
  // Indices are taken one at a time: they stand for whole clusters, whose cost varies.
  const unsigned helpers = static_cast<unsigned>(std::min<std::size_t>(count, threads()));
  co_await JobAwaiter<Impl>{*impl_, state, helpers};
}

}  // namespace vise
