// Nodes: their place in the graph, and how they are let go.
#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdio>

#include "graph/internals.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

Node::Node(Graph& graph, const DriverType& type, NodeOptions options)
    : graph_(graph),
      type_(&type),
      options_(std::move(options)),
      tracking_(std::make_unique<Tracking>()) {}

Node::~Node() {
  assert((driver_ == nullptr || closed_) && "a node was dropped without Graph::release()");
}

Child* Node::child(std::string_view name) const {
  for (Child* edge : children_) {
    if (edge->name() == name) return edge;
  }
  return nullptr;
}

Child* Node::filtered_child() const {
  for (Child* edge : children_) {
    if (edge->role() == EdgeRole::filtered) return edge;
  }
  return nullptr;
}

Child* Node::backing_child() const {
  for (Child* edge : children_) {
    if (edge->role() == EdgeRole::backing) return edge;
  }
  return nullptr;
}

std::size_t Node::requests_in_flight() const { return tracking_->in_flight; }

Graph::Graph(Context& context)
    : on_warning([](const std::string& text) { std::fprintf(stderr, "%s\n", text.c_str()); }),
      context_(context) {}

Graph::~Graph() { assert(nodes_.empty() && "await close_all() before"); }

Node* Graph::find(std::string_view node_name) const {
  for (Node* node : nodes_) {
    if (node->name() == node_name) return node;
  }
  return nullptr;
}

void Graph::adopt(std::shared_ptr<Node> node) {
  if (node->owned_by_graph_) return;
  node->owned_by_graph_ = true;
  adopted_.push_back(std::move(node));
}

Task<void> Graph::disown(Node& node) {
  const auto position = std::find_if(adopted_.begin(), adopted_.end(),
                                     [&](const auto& adopted) { return adopted.get() == &node; });
  if (position == adopted_.end()) co_return;
  std::shared_ptr<Node> owned = std::move(*position);
  adopted_.erase(position);
  owned->owned_by_graph_ = false;
  co_await release(std::move(owned));
}

Task<void> Graph::release(std::shared_ptr<Node> node) {
  if (node->closed_ || node->owned_by_graph_ || !node->parents_.empty()) co_return;
  co_await Internals::close_node(std::move(node));
}

Task<void> Graph::close_all() {
  std::exception_ptr failure;
  std::vector<std::shared_ptr<Node>> tops;
  for (Node* node : nodes_) tops.push_back(node->shared_from_this());
  for (const auto& node : adopted_) node->owned_by_graph_ = false;
  adopted_.clear();
  for (const auto& node : tops) {
    try {
      co_await release(node);  // those that have parents go with the last of them
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

Task<void> Graph::Internals::close_node(std::shared_ptr<Node> node) {
  node->closed_ = true;
  while (node->tracking_->in_flight > 0) co_await node->tracking_->idle.wait();
  std::exception_ptr failure;
  try {
    co_await node->driver_->drain();
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await node->driver_->close();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  std::erase(node->graph_.nodes_, node.get());
  if (failure) std::rethrow_exception(failure);
}

void Graph::Internals::refresh_limits(Node& node) {
  if (node.driver_ == nullptr) return;
  node.tracking_->limits = node.driver_->limits();
  node.tracking_->effective = EffectiveLimits(node.tracking_->limits);
  for (const Child* edge : node.parents_) {
    if (edge->parent() != nullptr) refresh_limits(*edge->parent());
  }
}

}  // namespace vise
