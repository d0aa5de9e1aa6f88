#include "job/job_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "util/ids.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

std::string message_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return error.code() == ECANCELED ? "Operation canceled" : error.message();
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

std::shared_ptr<Job> JobTable::find(std::string_view id) const {
  const auto found = std::ranges::find(jobs_, id, [](const auto& job) { return job->id(); });
  return found == jobs_.end() ? nullptr : *found;
}

void JobTable::require_idle(const Node& node) const {
  for (const auto& job : jobs_) {
    if (job->status() == Job::Status::concluded) continue;
    const std::vector<Node*> nodes = job->nodes();
    if (std::ranges::find(nodes, &node) == nodes.end()) continue;
    throw Error(EBUSY, fmt::format("Node '{}' is busy: block device is in use by block job: {}",
                                   node.name(), to_string(job->type())));
  }
}

void JobTable::require_new_id(const std::string& id) const {
  if (!is_id(id)) throw Error(EINVAL, fmt::format("Invalid job ID '{}'", id));
  if (find(id) != nullptr) throw Error(EEXIST, fmt::format("Job ID '{}' already in use", id));
}

void JobTable::add(std::shared_ptr<Job> job, std::shared_ptr<JobGroup> group) {
  job->group_ = std::move(group);
  if (job->group_ != nullptr) job->group_->add(*job);
  jobs_.push_back(job);
  job->set_status(Job::Status::created);
}

void JobTable::start(std::shared_ptr<Job> job) {
  job->set_status(Job::Status::running);
  running_.spawn(live(std::move(job)));
}

Task<void> JobTable::discard(std::shared_ptr<Job> job) {
  job->set_status(Job::Status::aborting);
  if (job->group_ != nullptr) std::erase(job->group_->jobs_, job.get());
  co_await job->abort();
  co_await job->clean();
  job->set_status(Job::Status::concluded);
  job->set_status(Job::Status::null);
  remove(*job);
}

void JobTable::remove(const Job& job) {
  std::erase_if(jobs_, [&](const auto& known) { return known.get() == &job; });
}

Task<void> JobTable::wait_for_group(Job& job) {
  job.set_status(Job::Status::waiting);
  if (job.group_ != nullptr) {
    for (Job* other : job.group_->jobs_) other->wake();
    while (!job.group_->all_wait() && !job.cancelled_) co_await job.wait_for_change();
  }
  if (job.cancelled_) throw Error::system_error(ECANCELED);
  job.set_status(Job::Status::pending);
  bool waits = !job.settings().auto_finalize;
  if (waits && job.is_block_job()) {
    job.events().emit<qapi::event::BLOCK_JOB_PENDING>({.type = job.type(), .id = job.id()});
  }
  if (job.group_ != nullptr) {
    // One that is finalized by hand holds them all.
    waits = std::ranges::any_of(job.group_->jobs_,
                                [](const Job* other) { return !other->settings().auto_finalize; });
  }
  while (waits && !job.finalizing_ && !job.cancelled_) co_await job.wait_for_change();
  if (job.cancelled_) throw Error::system_error(ECANCELED);
}

Task<void> JobTable::conclude(Job& job, std::exception_ptr failure) {
  AsyncMutex::Guard guard = co_await turn_.lock();
  if (!failure) {
    try {
      co_await job.commit();
    } catch (...) {
      failure = std::current_exception();
    }
  }
  if (failure) {
    job.error_ = message_of(failure);
    if (job.group_ != nullptr) job.group_->fail(job);
    job.set_status(Job::Status::aborting);
    try {
      co_await job.abort();
    } catch (const Error&) {
      // What failed first is what is told.
    }
  }
  try {
    co_await job.clean();
  } catch (const Error& error) {
    if (job.error_.empty()) job.error_ = error.message();
  }
}

Task<void> JobTable::live(std::shared_ptr<Job> job) {
  co_await EventLoop::current().yield();  // what starts it is answered first
  std::exception_ptr failure;
  try {
    co_await job->run();
    co_await wait_for_group(*job);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await conclude(*job, failure);
  if (job->group_ != nullptr) std::erase(job->group_->jobs_, job.get());
  job->emit_end(job->cancelled_ && !job->error_.empty());
  job->set_status(Job::Status::concluded);
  while (!job->settings().auto_dismiss && !job->dismissed_) co_await job->wait_for_change();
  job->set_status(Job::Status::null);
  remove(*job);
}

Task<void> JobTable::stop_all() {
  for (const auto& job : std::vector<std::shared_ptr<Job>>(jobs_)) {
    job->settings_.auto_dismiss = true;
    if (job->status() == Job::Status::concluded) {
      job->dismiss();
    } else if (job->status() != Job::Status::aborting) {
      job->cancel(Job::Cancel::force);
    }
  }
  co_await running_.join();
}

}  // namespace vise
