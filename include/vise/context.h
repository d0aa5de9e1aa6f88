// What main() makes once and everything hangs off.
#pragma once

#include <memory>
#include <string>

#include "vise/event_loop.h"
#include "vise/worker_pool.h"

namespace vise {

class DriverTable;
class IoEngine;

/// Event loop, worker pool, I/O engine and driver table of one program.
class Context {
 public:
  struct Options {
    unsigned worker_threads = 0;  // 0: one per core
    bool io_uring = true;         // false: the thread pool does all file I/O
  };
  Context();
  explicit Context(Options options);
  ~Context();

  EventLoop& loop() { return *loop_; }
  WorkerPool& workers() { return *workers_; }
  IoEngine& io() { return *io_; }
  /// A thread pool engine whatever the default is, for aio=threads.
  IoEngine& io_threads();
  DriverTable& drivers() { return *drivers_; }

 private:
  Options options_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<WorkerPool> workers_;
  std::unique_ptr<IoEngine> io_;
  std::unique_ptr<IoEngine> io_threads_;
  std::unique_ptr<DriverTable> drivers_;
};

}  // namespace vise
