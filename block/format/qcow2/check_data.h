// Decoding every compressed cluster of an image, to find those that are damaged.
#pragma once

#include <vector>

#include "format/qcow2/check_pass.h"
#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/image_operations.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// Decodes what the compressed entries of `tables` name and reports as `request` says. Clusters
/// that cannot be read count among `result.check_errors`; all else goes to `result.data`.
Task<void> check_data(Child& file, const Header& header, const CheckRequest& request,
                      const std::vector<L2Use>& tables, CheckResult& result);

}  // namespace vise::qcow2
