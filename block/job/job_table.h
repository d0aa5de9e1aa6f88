// The jobs of a program, and their way from state to state.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "job/job.h"
#include "util/event_bus.h"
#include "vise/sync.h"

namespace vise {

class JobTable {
 public:
  /// `turn`: held while a job changes the graph; see Services::turn().
  JobTable(EventBus& events, AsyncMutex& turn) : events_(events), turn_(turn) {}
  JobTable(const JobTable&) = delete;

  EventBus& events() { return events_; }
  AsyncMutex& turn() { return turn_; }

  /// In order of creation.
  const std::vector<std::shared_ptr<Job>>& jobs() const { return jobs_; }
  /// Null if there is none of that id.
  std::shared_ptr<Job> find(std::string_view id) const;
  /// Throws Error(EBUSY) if a job works on the node.
  void require_idle(const Node& node) const;
  /// Throws Error(EINVAL / EEXIST) unless a new job may have that id.
  void require_new_id(const std::string& id) const;

  /// The job becomes part of the table in state "created"; it starts with start().
  void add(std::shared_ptr<Job> job, std::shared_ptr<JobGroup> group = nullptr);
  /// It begins its work, and goes on by itself from here.
  void start(std::shared_ptr<Job> job);
  /// The opposite of add(), for a job that was not started after all: cleans it.
  Task<void> discard(std::shared_ptr<Job> job);

  /// Cancels all jobs and waits until they are gone. No more may be added then.
  Task<void> stop_all();

 private:
  Task<void> live(std::shared_ptr<Job> job);
  Task<void> wait_for_group(Job& job);
  Task<void> conclude(Job& job, std::exception_ptr failure);
  void remove(const Job& job);

  EventBus& events_;
  AsyncMutex& turn_;
  std::vector<std::shared_ptr<Job>> jobs_;
  TaskScope running_;
};

}  // namespace vise
