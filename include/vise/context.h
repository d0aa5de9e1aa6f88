// What main() makes once and everything hangs off.
#pragma once

#include <memory>
#include <string>

#include "vise/event_loop.h"
#include "vise/worker_pool.h"

namespace vise {

class DriverTable;
class IoEngine;
class ObjectTable;

/// Event loop, worker pool, I/O engine, driver table and objects of one program.
class Context {
 public:
  struct Options {
    unsigned worker_threads = 0;  // 0: one per core
    bool io_uring = true;  // false, or VISE_IO_URING=0 in the environment: threads do all I/O
  };
  Context();
  explicit Context(Options options);
  ~Context();

  EventLoop& loop() { return *loop_; }
  WorkerPool& workers() { return *workers_; }
  /// io_uring where it is wanted, the same as io_threads() where not. Where the kernel refuses, it
  /// hands all to that.
  IoEngine& io() { return io_uring_ ? *io_uring_ : *io_threads_; }
  /// A thread pool engine whatever the default is, for aio=threads.
  IoEngine& io_threads() { return *io_threads_; }
  DriverTable& drivers() { return *drivers_; }
  ObjectTable& objects() { return *objects_; }

 private:
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<WorkerPool> workers_;
  std::unique_ptr<IoEngine> io_threads_;
  std::unique_ptr<IoEngine> io_uring_;  // null where it is not wanted or not built
  std::unique_ptr<DriverTable> drivers_;
  std::unique_ptr<ObjectTable> objects_;
};

}  // namespace vise
