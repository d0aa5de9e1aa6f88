// What is known of the image of one node, as `info` and QMP tell it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "vise/graph.h"
#include "vise/value.h"

namespace vise {

/// The BlockNodeInfo dictionary of `node`.
Task<Value> node_image_info(Node& node);

/// Bytes that the file system has given to the files of an image; its backing image not included.
/// Nothing where that is not known.
std::optional<std::uint64_t> allocated_bytes(const Node& node);

/// The name under which messages and `backing-filename`'s relatives know the stored backing name
/// `name` of `node`: resolved against the image's folder unless it is no plain file name.
std::string full_backing_name(const Node& node, const std::string& name);

}  // namespace vise
