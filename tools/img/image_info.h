// What `info` knows of one image, gathered from the graph and printed in both forms.
#pragma once

#include <string>

#include "vise/graph.h"
#include "vise/value.h"

namespace vise::tools {

/// The ImageInfo dictionary of `node`, its children but not its backing image included.
Task<Value> image_info(Node& node);

/// The human form. `indent` blanks stand in front of each line; `path` names the node among the
/// children of the top one ("" for that).
std::string image_info_text(const Value& info, unsigned indent = 0, const std::string& path = "");

}  // namespace vise::tools
