// compress: compresses what an image holds where it lies, while the image is in use.
#pragma once

#include <memory>

#include "copy/compress_in_place.h"
#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

struct CompressSettings {
  JobSettings job;         // errors: on_target_error alone counts
  Node* device = nullptr;  // the image, or a filter above it
  InPlaceOptions options;
};

/// Makes the job, not started and not in the table. Throws Error, with nothing changed.
Task<std::shared_ptr<Job>> make_compress_job(JobTable& jobs, CompressSettings settings);

}  // namespace vise
