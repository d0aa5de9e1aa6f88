// What query-named-block-nodes tells of one node.
#pragma once

#include "qapi/qapi-types.h"
#include "vise/graph.h"

namespace vise {

enum class Chain { whole, top_only };

/// The BlockDeviceInfo dictionary.
Task<Value> node_info(Node& node, Chain chain);

/// The bitmaps of a node, newest first.
std::vector<qapi::BlockDirtyInfo> bitmap_infos(Node& node);

}  // namespace vise
