// create: makes an image on a node, or a file.
#pragma once

#include <memory>

#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

/// Makes the job, not started and not in the table. `options` are the arguments of blockdev-create,
/// of the types that qapi/ declares. Throws Error for drivers that cannot create; what else is
/// wrong fails the job.
std::shared_ptr<Job> make_create_job(JobTable& jobs, Graph& graph, std::string id,
                                     Value::Dict options);

}  // namespace vise
