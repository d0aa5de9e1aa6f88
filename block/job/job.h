// A job: work on nodes that takes its time, with the states, verbs and events that QMP clients
// know. A kind of job derives from this and says what the work is; JobTable moves it from state to
// state.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "copy/rate_limit.h"
#include "copy/stretch_copy.h"
#include "qapi/qapi-types.h"
#include "vise/sync.h"

namespace vise {

class EventBus;
class JobGroup;
class Node;

/// What a client chooses for every job.
struct JobSettings {
  std::string id;
  bool auto_finalize = true;
  bool auto_dismiss = true;
  std::uint64_t speed = 0;  // bytes per second, 0: no limit
  qapi::BlockdevOnError on_source_error = qapi::BlockdevOnError::report;
  qapi::BlockdevOnError on_target_error = qapi::BlockdevOnError::report;
};

class Job {
 public:
  using Status = qapi::JobStatus;

  virtual ~Job();
  Job(const Job&) = delete;

  /// The job, once `preparation` is done, which is the job's own; if that fails, the job is cleaned
  /// and the failure thrown.
  static Task<std::shared_ptr<Job>> prepared(std::shared_ptr<Job> job, Task<void> preparation);

  const std::string& id() const { return settings_.id; }
  const JobSettings& settings() const { return settings_; }
  qapi::JobType type() const { return type_; }
  Status status() const { return status_; }
  bool is_ready() const { return status_ == Status::ready || status_ == Status::standby; }
  bool is_paused() const { return status_ == Status::paused || status_ == Status::standby; }
  std::uint64_t done() const { return done_; }    // bytes
  std::uint64_t total() const { return total_; }  // bytes; may grow
  /// Why it failed or was cancelled; empty: it did not.
  const std::string& error() const { return error_; }
  qapi::BlockDeviceIoStatus io_status() const { return io_status_; }
  /// Jobs on nodes have BLOCK_JOB_* events and are told by query-block-jobs.
  virtual bool is_block_job() const { return true; }
  virtual void describe(qapi::BlockJobInfo&) const {}
  /// Nodes that no other job and no command may change meanwhile.
  virtual std::vector<Node*> nodes() const { return {}; }

  // Verbs. They throw Error(EPERM) in states that do not accept them.
  void pause();
  void resume();
  void set_speed(std::uint64_t bytes_per_second);
  /// Throws Error(EINVAL) for options of another type of job, ENOTSUP for what cannot change.
  void change(const qapi::JobChangeOptions& options);
  enum class Cancel { soft, force };
  /// soft: a ready job ends without failing, leaving the target as a copy.
  void cancel(Cancel how);
  void complete();
  void finalize();
  void dismiss();

 protected:
  Job(EventBus& events, qapi::JobType type, JobSettings settings);

  /// Its type is that of the job, and it runs.
  virtual void take_change(const qapi::JobChangeOptions& options);

  /// The work. Throws what it fails with; Error(ECANCELED) after a forced cancel.
  virtual Task<void> run() = 0;
  /// After success, drained of nothing but with the turn held: makes the result count. Throws.
  virtual Task<void> commit() { co_return; }
  /// After a failure, with the turn held.
  virtual Task<void> abort() { co_return; }
  /// Always, after one of them: lets go of nodes.
  virtual Task<void> clean() { co_return; }

  // For run().
  /// Returns at once unless paused; throws Error(ECANCELED) if cancelled.
  Task<void> checkpoint();
  bool is_cancelled() const { return cancelled_; }
  bool should_end() const { return completing_ || soft_cancelled_; }
  bool was_soft_cancelled() const { return soft_cancelled_; }
  /// Waits for a verb, or for whatever wake() tells.
  Task<void> wait_for_change();
  void wake() { changed_.wake_all(); }
  /// Waits as long as the speed asks for before so many bytes are moved; a verb ends the wait.
  Task<void> wait_for_speed(std::uint64_t bytes);
  void become_ready();
  void set_total(std::uint64_t bytes) { total_ = bytes; }
  void add_total(std::uint64_t bytes) { total_ += bytes; }
  void set_done(std::uint64_t bytes) { done_ = bytes; }
  void add_done(std::uint64_t bytes) { done_ += bytes; }
  /// Tells the error, and does what the policy of its side says: throws it (report), says that it
  /// is to be ignored, where that is possible (else as report), or pauses the job if it is not
  /// paused yet (stop, retry). Await after_errors() once all errors are told, so that one resume()
  /// is enough for those that came together.
  enum class Reaction { ignore, retry };
  enum class Ignoring { possible, impossible };
  Reaction react_to(const CopyError& error, Ignoring ignoring = Ignoring::possible);
  Task<void> after_errors();

  EventBus& events() { return events_; }

 private:
  friend class JobTable;
  friend class JobGroup;

  void set_status(Status status);
  void require(std::string_view verb, std::initializer_list<Status> allowed) const;
  void emit_end(bool cancelled);

  EventBus& events_;
  const qapi::JobType type_;
  JobSettings settings_;
  Status status_ = Status::undefined;
  std::uint64_t done_ = 0;
  std::uint64_t total_ = 0;
  std::string error_;
  qapi::BlockDeviceIoStatus io_status_ = qapi::BlockDeviceIoStatus::ok;
  RateLimit rate_;
  bool paused_ = false;
  bool cancelled_ = false;
  bool soft_cancelled_ = false;
  bool completing_ = false;
  bool finalizing_ = false;
  bool dismissed_ = false;
  std::shared_ptr<JobGroup> group_;  // null: it stands alone
  WaitQueue changed_;
};

/// Jobs of one transaction that succeed together or not at all.
class JobGroup {
 public:
  void add(Job& job);

 private:
  friend class JobTable;
  friend class Job;
  void fail(const Job& because);
  bool all_wait() const;
  std::vector<Job*> jobs_;  // that have not concluded
};

}  // namespace vise
