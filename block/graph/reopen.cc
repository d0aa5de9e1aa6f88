// Switching between read-only and read-write. Other options: reopen_options.cc.
#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <utility>

#include "graph/drained.h"
#include "graph/internals.h"
#include "vise/error.h"

namespace vise {

namespace {

bool follows_parent(EdgeRole role) {
  return role == EdgeRole::storage || role == EdgeRole::data_file || role == EdgeRole::filtered;
}

// `node` and what below it is opened for its sake, parents first.
void collect(Node& node, bool read_only, std::vector<Node*>& nodes) {
  if (node.read_only() == read_only) return;
  for (const Node* known : nodes) {
    if (known == &node) return;
  }
  nodes.push_back(&node);
  for (const Child* edge : node.children()) {
    // A node that others use as well stays writable for them.
    const bool shared = read_only && edge->node().parents().size() > 1;
    if (follows_parent(edge->role()) && !shared) collect(edge->node(), read_only, nodes);
  }
}

}  // namespace

// What the driver does on the way still writes: the right to is taken before, given up after.
Task<void> Graph::Internals::switch_node(Node& node, bool read_only) {
  if (read_only) {
    co_await node.driver_->flush();
    co_await node.driver_->reopen(true);
    node.options_.read_only = true;
    std::exception_ptr failure;
    try {
      co_await update_permissions(node, nullptr, {});
    } catch (...) {
      failure = std::current_exception();  // somebody writes to it
    }
    if (failure) {
      co_await node.driver_->reopen(false);
      std::rethrow_exception(failure);
    }
  } else {
    node.options_.read_only = false;
    co_await update_permissions(node, nullptr, {});
    co_await node.driver_->reopen(false);
  }
  refresh_limits(node);
}

Task<void> Graph::Internals::switch_nodes(std::vector<Node*> nodes, bool read_only) {
  // Children are writable while their parent switches: they go last to read-only, first back.
  if (!read_only) nodes = std::vector<Node*>(nodes.rbegin(), nodes.rend());
  std::exception_ptr failure;
  std::size_t done = 0;
  try {
    for (; done < nodes.size(); ++done) co_await switch_node(*nodes[done], read_only);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  nodes[done]->options_.read_only = !read_only;  // its driver is as it was
  co_await relax_permissions(*nodes[done]);
  while (done-- > 0) {
    try {
      co_await switch_node(*nodes[done], !read_only);
    } catch (const Error&) {
      // The first failure is the one to report.
    }
  }
  std::rethrow_exception(failure);
}

Task<void> Graph::reopen(Node& node, bool read_only) {
  if (node.read_only() == read_only) co_return;
  if (!read_only && node.options().force_share) {
    throw Error(EINVAL, fmt::format("Node '{}' was opened with force-share=on and must stay "
                                    "read-only",
                                    node.name()));
  }
  std::vector<Node*> nodes;
  collect(node, read_only, nodes);
  const auto work = [&] { return Internals::switch_nodes(nodes, read_only); };
  co_await while_drained(node, work);
}

}  // namespace vise
