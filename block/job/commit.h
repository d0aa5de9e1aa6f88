// commit: moves what the images from one down to a base hold into the base, so that they can go.
// (The topmost image of a chain is committed by a mirror job: mirror.h.)
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "graph/file_names.h"
#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

struct CommitSettings {
  JobSettings job;
  Node* top = nullptr;                      // the uppermost image to go; others are above it
  Node* base = nullptr;                     // below it
  std::optional<std::string> backing_file;  // what headers say afterwards; else the base's name
  StoredFormat backing_format = StoredFormat::as_driver;
  std::optional<std::string> filter_node_name;
};

/// Makes the job, not started and not in the table. Throws Error, with nothing changed.
Task<std::shared_ptr<Job>> make_commit_job(JobTable& jobs, CommitSettings settings);

}  // namespace vise
