// Work on a node that nobody else uses meanwhile.
#pragma once

#include <exception>
#include <memory>
#include <utility>

#include "vise/graph.h"
#include "vise/task.h"

namespace vise {

/// Runs `body` with the node drained: nothing from above reaches it, nobody has requests in flight,
/// and what was held back is written. The node lives as long. What `body` refers to outlives the
/// task.
template <class Body>
Task<void> while_drained(Node& node, Body body) {
  const std::shared_ptr<Node> self = node.shared_from_this();
  co_await node.drain_begin();
  std::exception_ptr failure;
  try {
    Task<void> work = body();
    co_await std::move(work);
  } catch (...) {
    failure = std::current_exception();
  }
  node.drain_end();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise
