// stream: copies to an image what it gets from the images below it, so that those can go.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "graph/file_names.h"
#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

struct StreamSettings {
  JobSettings job;
  Node* device = nullptr;                   // the image, or a filter above it
  Node* base = nullptr;                     // where to stop; null: everything is copied
  std::optional<std::string> backing_file;  // what the header says afterwards; else the base's name
  StoredFormat backing_format = StoredFormat::as_driver;
  std::optional<std::string> filter_node_name;
};

/// Makes the job, not started and not in the table. Throws Error, with nothing changed.
Task<std::shared_ptr<Job>> make_stream_job(JobTable& jobs, StreamSettings settings);

}  // namespace vise
