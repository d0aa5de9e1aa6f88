// Edges: made by Graph::attach(), pointed elsewhere, let go.
#include "vise/child.h"

#include <algorithm>
#include <cassert>

#include "graph/internals.h"
#include "vise/graph.h"

namespace vise {

Child::Child(std::string name, EdgeRole role, Node* parent)
    : name_(std::move(name)), role_(role), parent_(parent) {}

Child::~Child() {
  if (node_ == nullptr) return;
  // Only a parent that failed to open may let an edge die attached; the graph closes the node.
  assert(parent_ != nullptr && parent_->driver_ == nullptr && "await detach() before");
  assert(in_flight_ == 0);
  Graph& graph = node_->graph();
  std::shared_ptr<Node> node = node_;
  Graph::Internals::unlink(*this);
  graph.abandoned_.push_back(std::move(node));
}

EventPoint Child::event(Event event) const { return EventPoint(node_->driver().reached(event)); }

Task<void> Child::set_permissions(Permissions permissions) {
  co_await Graph::Internals::update_permissions(*node_, this, permissions);
}

Task<void> Child::replace_node(std::shared_ptr<Node> node) {
  assert(in_flight_ == 0 && "drain first");
  if (node == node_) co_return;
  const Permissions wanted = permissions_;
  const std::shared_ptr<Node> old = node_;
  Graph::Internals::unlink(*this);
  permissions_ = Permissions{{}, Permissions::all()};
  Graph::Internals::link(*this, node);
  std::exception_ptr failure;
  try {
    co_await Graph::Internals::update_permissions(*node, this, wanted);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    Graph::Internals::unlink(*this);
    Graph::Internals::link(*this, old);
    permissions_ = wanted;  // which the old node still knows
    std::rethrow_exception(failure);
  }
  if (parent_ != nullptr) Graph::Internals::refresh_limits(*parent_);
  co_await Graph::Internals::relax_permissions(*old);
  co_await old->graph().release(old);
}

Task<void> Child::detach() {
  if (node_ == nullptr) co_return;
  assert(in_flight_ == 0 && "a request still uses this edge");
  std::shared_ptr<Node> node = node_;
  Graph::Internals::unlink(*this);
  // A node that closes now keeps its rights below to the end: it may have to write what it holds.
  const bool lives_on = node->owned_by_graph_ || !node->parents_.empty();
  if (lives_on) co_await Graph::Internals::relax_permissions(*node);
  Graph& graph = node->graph();
  co_await graph.release(std::move(node));
}

void Graph::Internals::link(Child& edge, std::shared_ptr<Node> node) {
  edge.node_ = std::move(node);
  edge.node_->parents_.push_back(&edge);
  if (edge.parent_ != nullptr) {
    edge.parent_->children_.push_back(&edge);
    change_quiesced(*edge.parent_, static_cast<std::ptrdiff_t>(edge.node_->tracking_->quiesced));
  }
}

void Graph::Internals::unlink(Child& edge) {
  std::erase(edge.node_->parents_, &edge);
  if (edge.parent_ != nullptr) {
    std::erase(edge.parent_->children_, &edge);
    change_quiesced(*edge.parent_, -static_cast<std::ptrdiff_t>(edge.node_->tracking_->quiesced));
  }
  edge.node_.reset();
}

}  // namespace vise
