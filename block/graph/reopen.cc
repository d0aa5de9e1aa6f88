// Switching between read-only and read-write.
#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <utility>

#include "graph/internals.h"
#include "graph/node_options.h"
#include "util/keyval.h"
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

// Throws for what is not as it was when the node was opened.
void check_unchanged(const Value::Dict& now, const Value::Dict& before, const std::string& path) {
  for (const auto& [name, value] : now) {
    const Value* old = before.find(name);
    if (old != nullptr && old->is_dict() && value.is_dict()) {
      check_unchanged(value.as_dict(), old->as_dict(), fmt::format("{}{}.", path, name));
    } else if (old == nullptr || *old != value) {
      throw Error(EINVAL,
                  fmt::format("Cannot change the option '{}{}' of an open image", path, name));
    }
  }
}

}  // namespace

void Graph::change_options(Node& node, Value::Dict options) {
  options = nest_dotted_keys(std::move(options));
  const NodeOptions& old = node.options();
  const NodeOptions changed = take_node_options(options, old, {});
  const std::pair<std::string_view, bool> fixed[] = {
      {"node-name", changed.node_name == old.node_name},
      {"read-only", changed.read_only == old.read_only},
      {"auto-read-only", changed.auto_read_only == old.auto_read_only},
      {"force-share", changed.force_share == old.force_share},
      {"cache.direct", changed.cache_direct == old.cache_direct}};
  for (const auto& [name, same] : fixed) {
    if (!same) throw Error(EINVAL, fmt::format("Cannot change the option '{}' this way", name));
  }
  check_unchanged(options, node.full_options(), {});
  node.options_ = changed;
}

// What the driver does on the way still writes: the right to is taken before, given up after.
Task<void> Graph::Internals::switch_node(Node& node, bool read_only) {
  if (read_only) {
    co_await node.driver_->flush();
    co_await node.driver_->reopen(true);
    node.options_.read_only = true;
    co_await update_permissions(node, nullptr, {});
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
  const std::shared_ptr<Node> self = node.shared_from_this();
  std::vector<Node*> nodes;
  collect(node, read_only, nodes);
  co_await node.drain_begin();
  std::exception_ptr failure;
  try {
    co_await Internals::switch_nodes(nodes, read_only);
  } catch (...) {
    failure = std::current_exception();
  }
  node.drain_end();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise
