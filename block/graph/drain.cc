// Drain: nothing new from outside, everything under way finished, buffers written out.
//
// Only roots (programs, jobs, exports) are held back, at whatever height above the drained node
// they stand. Requests of nodes pass: a request that a parent has begun must be able to finish, and
// a driver may work on its children while it is drained.
#include <algorithm>

#include "graph/internals.h"
#include "vise/graph.h"

namespace vise {

namespace {

// `node` and everything above it, each after all of its parents: the order in which requests dry
// up.
void collect_above(Node& node, std::vector<std::shared_ptr<Node>>& found) {
  for (const auto& known : found) {
    if (known.get() == &node) return;
  }
  for (const Child* edge : node.parents()) {
    if (edge->parent() != nullptr) collect_above(*edge->parent(), found);
  }
  found.push_back(node.shared_from_this());
}

// Everything below `node`, parents first.
void collect_below(Node& node, std::vector<std::shared_ptr<Node>>& found) {
  for (const Child* edge : node.children()) {
    const bool known = std::any_of(found.begin(), found.end(),
                                   [&](const auto& other) { return other.get() == &edge->node(); });
    if (known) continue;
    found.push_back(edge->shared_node());
    collect_below(edge->node(), found);
  }
}

Task<void> wait_until_idle(Node& node) {
  while (node.tracking().in_flight > 0) co_await node.tracking().idle.wait();
}

Task<void> settle(Node& drained) {
  std::vector<std::shared_ptr<Node>> above;
  collect_above(drained, above);
  for (bool busy = true; busy;) {
    for (const auto& node : above) {
      co_await wait_until_idle(*node);
      co_await node->driver().drain();
    }
    busy = std::any_of(above.begin(), above.end(),
                       [](const auto& node) { return node->requests_in_flight() > 0; });
  }
  // What lies below may serve others, who are not held back: only what is at rest is written out.
  std::vector<std::shared_ptr<Node>> below;
  collect_below(drained, below);
  for (const auto& node : below) {
    if (node->requests_in_flight() == 0) co_await node->driver().drain();
  }
}

}  // namespace

void Graph::Internals::change_quiesced(Node& node, std::ptrdiff_t count) {
  if (count == 0) return;
  Node::Tracking& tracking = *node.tracking_;
  tracking.quiesced += static_cast<std::size_t>(count);  // wraps back for negative counts
  for (const Child* edge : node.parents_) {
    if (edge->parent_ != nullptr) change_quiesced(*edge->parent_, count);
  }
  if (tracking.quiesced == 0) tracking.resumed.wake_all();
}

Task<void> Node::drain_begin() {
  const std::shared_ptr<Node> self = shared_from_this();
  Graph::Internals::change_quiesced(*this, 1);
  std::exception_ptr failure;
  try {
    co_await settle(*this);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    Graph::Internals::change_quiesced(*this, -1);
    std::rethrow_exception(failure);
  }
}

void Node::drain_end() { Graph::Internals::change_quiesced(*this, -1); }

}  // namespace vise
