// File I/O by threads that block. Finished requests collect in a list; the loop is woken once for
// all of them.
#include <fcntl.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cassert>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "util/io_engine.h"

namespace vise {

namespace {

constexpr std::size_t most_threads = 64;

class IoThreads final : public IoEngine {
 public:
  explicit IoThreads(EventLoop& loop) : loop_(loop) {}

  ~IoThreads() override {
    assert(in_flight_ == 0);
    {
      std::lock_guard<std::mutex> guard(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  std::string_view name() const override { return "threads"; }

 private:
  void start(Request& request) override {
    ++in_flight_;
    bool grow = false;
    {
      std::lock_guard<std::mutex> guard(mutex_);
      if (one_at_a_time(request)) {
        const auto [writer, first] = writers_.try_emplace(request.fd);
        if (!first) {
          writer->second.push_back(&request);
          return;
        }
      }
      *queue_end_ = &request;
      queue_end_ = &request.next;
      ++queued_;
      grow = queued_ > idle_ && threads_.size() < most_threads;
    }
    if (grow) {
      add_thread();
    } else {
      work_.notify_one();
    }
  }

  // Where no further thread is to be had, those there are do; the first one is a must.
  void add_thread() {
    try {
      threads_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
      if (threads_.empty()) std::terminate();
    }
  }

  void serve() {
    pthread_setname_np(pthread_self(), "vise-io");
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      ++idle_;
      work_.wait(lock, [this] { return stop_ || queue_ != nullptr; });
      --idle_;
      if (queue_ == nullptr) return;
      Request* request = queue_;
      queue_ = std::exchange(request->next, nullptr);
      if (queue_ == nullptr) queue_end_ = &queue_;
      --queued_;
      while (request != nullptr) {
        lock.unlock();
        const bool writer = one_at_a_time(*request);
        const int fd = request->fd;
        request->result = perform(*request);
        finish(*request);  // which ends its life
        lock.lock();
        request = writer ? next_write(fd) : nullptr;
      }
    }
  }

  // File systems let one buffered write at a time into a file. More threads would only spin on its
  // lock, and take the processors from those who have work to do.
  static bool one_at_a_time(const Request& request) {
    return request.operation == Operation::write && request.medium == Medium::page_cache;
  }

  // Call with mutex_ held, by the thread whose write to `fd` has ended.
  Request* next_write(int fd) {
    const auto writer = writers_.find(fd);
    if (writer->second.empty()) {
      writers_.erase(writer);
      return nullptr;
    }
    Request* const next = writer->second.front();
    writer->second.pop_front();
    return next;
  }

  static std::int64_t perform(const Request& request) noexcept {
    const auto checked = [](auto result) -> std::int64_t { return result < 0 ? -errno : result; };
    const int count = static_cast<int>(request.vector_count);
    const auto offset = static_cast<off_t>(request.offset);
    switch (request.operation) {
      case Operation::read:
        return checked(preadv(request.fd, request.vectors, count, offset));
      case Operation::write:
        if (request.durability == Durability::cached) {
          return checked(pwritev(request.fd, request.vectors, count, offset));
        }
        return checked(pwritev2(request.fd, request.vectors, count, offset, RWF_DSYNC));
      case Operation::sync:
        return checked(fdatasync(request.fd));
      case Operation::allocate:
        return checked(
            fallocate(request.fd, request.mode, offset, static_cast<off_t>(request.length)));
      case Operation::call:
        return (*request.function)();
    }
    return -EINVAL;
  }

  void finish(Request& request) {
    bool first = false;
    {
      std::lock_guard<std::mutex> guard(done_mutex_);
      first = done_ == nullptr;
      *done_end_ = &request;
      done_end_ = &request.next;
    }
    if (first) loop_.post([this] { resume_finished(); });
  }

  void resume_finished() {
    Request* request = nullptr;
    {
      std::lock_guard<std::mutex> guard(done_mutex_);
      request = std::exchange(done_, nullptr);
      done_end_ = &done_;
    }
    while (request != nullptr) {
      Request* const next = request->next;  // the request is gone once its waiter runs
      --in_flight_;
      request->waiter.resume();
      request = next;
    }
  }

  EventLoop& loop_;
  std::size_t in_flight_ = 0;
  std::vector<std::thread> threads_;

  std::mutex mutex_;  // guards the next seven
  std::condition_variable work_;
  Request* queue_ = nullptr;
  Request** queue_end_ = &queue_;
  std::size_t queued_ = 0;
  std::size_t idle_ = 0;
  bool stop_ = false;
  // The descriptors that a thread is writing to, with the writes that wait for it.
  std::unordered_map<int, std::deque<Request*>> writers_;

  std::mutex done_mutex_;  // guards the next two
  Request* done_ = nullptr;
  Request** done_end_ = &done_;
};

}  // namespace

std::unique_ptr<IoEngine> make_io_threads(EventLoop& loop) {
  return std::make_unique<IoThreads>(loop);
}

}  // namespace vise
