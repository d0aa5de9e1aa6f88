// Making a new qcow2 image.
#pragma once

#include "format/qcow2/create_options.h"
#include "vise/driver.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// DriverType::create: formats CreateRequest::file. Options are checked as a whole before anything
/// of the file changes; the header is written last, so that an interrupted creation leaves a file
/// that nothing takes for a qcow2 image. Whoever opened the node releases it.
Task<void> create(CreateRequest& request);

}  // namespace vise::qcow2
