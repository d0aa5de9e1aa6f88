#include "job/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "qapi/qapi-commands.h"
#include "util/event_bus.h"
#include "vise/error.h"

namespace vise {

namespace {

constexpr std::chrono::milliseconds longest_nap{100};  // between looks at verbs

}  // namespace

Job::Job(EventBus& events, qapi::JobType type, JobSettings settings)
    : events_(events), type_(type), settings_(std::move(settings)), rate_(settings_.speed) {}

Job::~Job() = default;

void Job::set_status(Status status) {
  status_ = status;
  // What is over cannot be held: one error may have paused the job and another one ended it.
  const bool is_over = status == Status::waiting || status == Status::aborting;
  if (is_over) paused_ = false;
  events_.emit<qapi::event::JOB_STATUS_CHANGE>({.id = id(), .status = status});
}

// --- verbs --------------------------------------------------------------------------------------

void Job::require(std::string_view verb, std::initializer_list<Status> allowed) const {
  if (std::ranges::find(allowed, status_) != allowed.end()) return;
  throw Error(EPERM, fmt::format("Job '{}' in state '{}' cannot accept command verb '{}'", id(),
                                 to_string(status_), verb));
}

void Job::pause() {
  require("pause", {Status::running, Status::paused, Status::ready, Status::standby});
  if (paused_) throw Error(EPERM, fmt::format("Job '{}' is already paused", id()));
  paused_ = true;
  set_status(status_ == Status::ready ? Status::standby : Status::paused);
}

void Job::resume() {
  require("resume", {Status::running, Status::paused, Status::ready, Status::standby});
  if (!paused_) throw Error(EPERM, fmt::format("Job '{}' is not paused", id()));
  paused_ = false;
  io_status_ = qapi::BlockDeviceIoStatus::ok;
  set_status(status_ == Status::standby ? Status::ready : Status::running);
  wake();
}

void Job::set_speed(std::uint64_t bytes_per_second) {
  require("set-speed", {Status::running, Status::paused, Status::ready, Status::standby});
  settings_.speed = bytes_per_second;
  rate_ = RateLimit(bytes_per_second);
  wake();
}

void Job::change(const qapi::JobChangeOptions& options) {
  require("change", {Status::running, Status::paused, Status::ready, Status::standby});
  if (options.type != type_) {
    throw Error(EINVAL, fmt::format("Job '{}' is of type '{}', not '{}'", id(), to_string(type_),
                                    to_string(options.type)));
  }
  take_change(options);
}

void Job::take_change(const qapi::JobChangeOptions&) {
  throw Error(ENOTSUP, fmt::format("Nothing can change of a job of type '{}'", to_string(type_)));
}

void Job::cancel(Cancel how) {
  require("cancel", {Status::running, Status::paused, Status::ready, Status::standby,
                     Status::waiting, Status::pending});
  if (how == Cancel::soft && paused_) {
    throw Error(EPERM, fmt::format("The block job for device '{}' is currently paused", id()));
  }
  if (how == Cancel::soft && status_ == Status::ready) {
    soft_cancelled_ = true;
  } else {
    cancelled_ = true;
    if (paused_) resume();
    if (group_ != nullptr) group_->fail(*this);
  }
  wake();
}

void Job::complete() {
  require("complete", {Status::ready, Status::standby});
  completing_ = true;
  wake();
}

void Job::finalize() {
  require("finalize", {Status::pending});
  finalizing_ = true;
  if (group_ != nullptr) {
    for (Job* job : group_->jobs_) {
      job->finalizing_ = true;
      job->wake();
    }
  }
  wake();
}

void Job::dismiss() {
  require("dismiss", {Status::concluded});
  dismissed_ = true;
  wake();
}

Task<std::shared_ptr<Job>> Job::prepared(std::shared_ptr<Job> job, Task<void> preparation) {
  std::exception_ptr failure;
  try {
    co_await std::move(preparation);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return job;
  try {
    co_await job->clean();
  } catch (const Error&) {
    // What failed first is what is told.
  }
  std::rethrow_exception(failure);
}

// --- for the work -------------------------------------------------------------------------------

Task<void> Job::checkpoint() {
  while (paused_ && !cancelled_) co_await changed_.wait();
  if (cancelled_) throw Error::system_error(ECANCELED);
}

Task<void> Job::wait_for_change() { co_await changed_.wait(); }

Task<void> Job::wait_for_speed(std::uint64_t bytes) {
  if (settings_.speed == 0) co_return;
  const auto until = RateLimit::Clock::now() + rate_.reserve(RateLimit::Clock::now(), bytes);
  const std::uint64_t speed = settings_.speed;
  // In naps: a cancelled or faster job goes on at once.
  for (;;) {
    const auto left = until - RateLimit::Clock::now();
    if (left <= left.zero() || cancelled_ || settings_.speed != speed) co_return;
    co_await EventLoop::current().sleep(std::min<std::chrono::nanoseconds>(left, longest_nap));
  }
}

void Job::become_ready() {
  if (is_ready()) return;
  set_status(paused_ ? Status::standby : Status::ready);
  qapi::BlockJobReadyArguments data;
  data.type = type_;
  data.device = id();
  data.len = static_cast<std::int64_t>(total_);
  data.offset = static_cast<std::int64_t>(done_);
  data.speed = static_cast<std::int64_t>(settings_.speed);
  events_.emit<qapi::event::BLOCK_JOB_READY>(data);
}

Job::Reaction Job::react_to(const CopyError& error, Ignoring ignoring) {
  const bool reading = error.side() == CopyError::Side::source;
  qapi::BlockdevOnError policy = reading ? settings_.on_source_error : settings_.on_target_error;
  using Policy = qapi::BlockdevOnError;
  if (policy == Policy::enospc) {
    policy = error.code() == ENOSPC ? Policy::stop : Policy::report;
  }
  const bool cannot = policy == Policy::ignore && ignoring == Ignoring::impossible;
  if (policy == Policy::auto_ || cannot) policy = Policy::report;
  qapi::BlockJobErrorArguments data;
  data.device = id();
  data.operation = reading ? qapi::IoOperationType::read : qapi::IoOperationType::write;
  data.action = policy == Policy::ignore ? qapi::BlockErrorAction::ignore
                : policy == Policy::stop ? qapi::BlockErrorAction::stop
                                         : qapi::BlockErrorAction::report;
  events_.emit<qapi::event::BLOCK_JOB_ERROR>(data);
  if (policy == Policy::report) throw error;
  if (policy == Policy::ignore) return Reaction::ignore;
  io_status_ = error.code() == ENOSPC ? qapi::BlockDeviceIoStatus::nospace
                                      : qapi::BlockDeviceIoStatus::failed;
  if (!paused_ && !cancelled_) pause();
  return Reaction::retry;
}

Task<void> Job::after_errors() {
  co_await EventLoop::current().yield();  // a lasting error must not keep others from running
  co_await checkpoint();
}

void Job::emit_end(bool cancelled) {
  if (!is_block_job()) return;
  qapi::BlockJobCompletedArguments data;
  data.type = type_;
  data.device = id();
  data.len = static_cast<std::int64_t>(total_);
  data.offset = static_cast<std::int64_t>(done_);
  data.speed = static_cast<std::int64_t>(settings_.speed);
  if (!cancelled) {
    if (!error_.empty()) data.error = error_;
    events_.emit<qapi::event::BLOCK_JOB_COMPLETED>(data);
    return;
  }
  qapi::BlockJobCancelledArguments end;
  end.type = data.type;
  end.device = data.device;
  end.len = data.len;
  end.offset = data.offset;
  end.speed = data.speed;
  events_.emit<qapi::event::BLOCK_JOB_CANCELLED>(end);
}

// --- groups -------------------------------------------------------------------------------------

void JobGroup::add(Job& job) { jobs_.push_back(&job); }

bool JobGroup::all_wait() const {
  return std::ranges::all_of(jobs_, [](const Job* job) {
    return job->status() == Job::Status::waiting || job->status() == Job::Status::pending;
  });
}

void JobGroup::fail(const Job& because) {
  for (Job* job : jobs_) {
    if (job == &because || job->cancelled_) continue;
    job->cancelled_ = true;
    if (job->paused_) job->resume();
    job->wake();
  }
}

}  // namespace vise
