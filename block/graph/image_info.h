// What is known of the image of one node, as `info` and QMP tell it.
#pragma once

#include "vise/graph.h"
#include "vise/value.h"

namespace vise {

/// The BlockNodeInfo dictionary of `node`.
Task<Value> node_image_info(Node& node);

/// The name under which messages and `backing-filename`'s relatives know the stored backing name
/// `name` of `node`: resolved against the image's folder unless it is no plain file name.
std::string full_backing_name(const Node& node, const std::string& name);

}  // namespace vise
