// Threads for work that would block or hog the event loop: codecs, checksums, zero scans.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "vise/event_loop.h"
#include "vise/task.h"

namespace vise {

/// A fixed number of threads that run plain functions. Results come back to the event loop that
/// asked in batches: one wake-up of the loop serves every job finished by then.
class WorkerPool {
 public:
  /// `threads` = 0: one per core of this process (sched_getaffinity), at most 64.
  explicit WorkerPool(unsigned threads = 0);
  /// Joins the threads; no job may be outstanding (asserted).
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;

  unsigned threads() const;

  /// Runs `job` on a worker, then continues on the calling loop. An exception of the job comes out
  /// of the co_await. What the job refers to must live until then.
  Task<void> run(std::function<void()> job);

  /// Runs job(0) … job(count - 1), distributed over the workers in chunks taken as they get free;
  /// completes when all have ended and throws the first exception. count = 1 with `here_if_single`
  /// set runs on the calling thread, since the hand-over costs more than a small job.
  enum class Single { on_worker, here };
  Task<void> for_each(std::size_t count, std::function<void(std::size_t)> job,
                      Single single = Single::on_worker);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vise
