// The options every node has, read from its tree of options and handed on to its children.
#pragma once

#include <string>

#include "vise/graph.h"

namespace vise {

/// Takes node-name, read-only, cache.direct … out of `options`; what is not there is as in
/// `defaults`. `path` ("file." or empty) stands in front of names in errors: Error(EINVAL).
NodeOptions take_node_options(Value::Dict& options, const NodeOptions& defaults,
                              const std::string& path);

/// What a child in `role` starts from.
NodeOptions inherited_options(const NodeOptions& above, EdgeRole role);

}  // namespace vise
