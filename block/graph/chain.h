// From node to node down a backing chain.
#pragma once

#include "vise/child.h"
#include "vise/graph.h"

namespace vise {

/// The image below `node` that its content comes from, filters aside: `node` itself if it is none.
/// `N`: Node, const or not.
template <class N>
N& image_of(N& node) {
  N* image = &node;
  while (const Child* below = image->filtered_child()) image = &below->node();
  return *image;
}

/// The node that supplies what that image does not have; null: none.
template <class N>
N* backing_of(N& node) {
  const Child* backing = image_of(node).backing_child();
  return backing != nullptr ? &backing->node() : nullptr;
}

}  // namespace vise
