// mirror: keeps another node in step with one that is written to, until it takes its place. An
// active commit is the same with the base of the chain as the other node.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

struct MirrorSettings {
  JobSettings job;
  Node* device = nullptr;
  Node* target = nullptr;
  enum class Purpose { mirror, commit } purpose = Purpose::mirror;  // commit: target is below
  qapi::MirrorSyncMode sync = qapi::MirrorSyncMode::full;           // full, top or none
  qapi::MirrorCopyMode copy_mode = qapi::MirrorCopyMode::background;
  Node* replaces = nullptr;                  // whose place the target takes; null: the device
  std::optional<std::uint64_t> granularity;  // bytes, a power of two
  bool may_unmap = true;                     // what becomes zeros may lose its space
  std::uint64_t buffer_size = 0;             // bytes on their way at most; 0: no bound of its own
  std::optional<std::string> filter_node_name;
};

/// Makes the job, not started and not in the table. Throws Error, with nothing changed.
Task<std::shared_ptr<Job>> make_mirror_job(JobTable& jobs, MirrorSettings settings);

}  // namespace vise
