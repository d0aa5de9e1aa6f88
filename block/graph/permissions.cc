// Permissions: what each parent of a node uses must be shared by all its other parents. A change at
// one edge can ask for more further down, so the subtree is worked out first, then told to the
// drivers (which lock files), and taken back as a whole if one of them refuses.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "graph/internals.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

std::string describe(PermissionSet set) {
  static constexpr std::array<std::pair<Permission, std::string_view>, 4> names = {{
      {Permission::consistent_read, "consistent read"},
      {Permission::write, "write"},
      {Permission::write_unchanged, "write unchanged"},
      {Permission::resize, "resize"},
  }};
  std::string text;
  for (const auto& [permission, name] : names) {
    if (!set.has(permission)) continue;
    if (!text.empty()) text += ", ";
    text += name;
  }
  return text;
}

std::string describe(const Child& edge) {
  if (edge.parent() == nullptr) return fmt::format("user '{}'", edge.name());
  return fmt::format("'{}' of node '{}'", edge.name(), edge.parent()->name());
}

Permissions storage_permissions(bool writable, Permissions parents) {
  Permissions result{Permission::consistent_read, parents.shares};
  if (writable) result.uses |= PermissionSet(Permission::write) | Permission::resize;
  // Metadata is cached: nobody else may change it.
  result.shares = result.shares.without(PermissionSet(Permission::write) | Permission::resize);
  result.shares |= PermissionSet(Permission::consistent_read) | Permission::write_unchanged;
  return result;
}

Permissions data_file_permissions(bool writable, Permissions parents) {
  Permissions result{Permission::consistent_read, parents.shares};
  if (writable) result.uses |= PermissionSet(Permission::write) | Permission::resize;
  result.shares = result.shares.without(Permission::resize);
  return result;
}

Permissions backing_permissions(Permissions parents) {
  Permissions result{parents.uses & Permission::consistent_read,
                     PermissionSet(Permission::consistent_read) | Permission::write_unchanged};
  // A parent that can live with changing data can live with a changing backing file.
  if (parents.shares.has(Permission::write)) {
    result.shares |= PermissionSet(Permission::write) | Permission::resize;
  }
  return result;
}

Permissions default_permissions(const Child& edge, Permissions parents) {
  const Node& parent = *edge.parent();
  const bool writable = !parent.read_only();
  switch (edge.role()) {
    case EdgeRole::storage:
      return storage_permissions(writable, parents);
    case EdgeRole::data_file:
      return data_file_permissions(writable, parents);
    case EdgeRole::backing:
      return backing_permissions(parents);
    case EdgeRole::filtered:
    case EdgeRole::target:
    case EdgeRole::root:
      break;
  }
  return parents;
}

}  // namespace

Permissions Graph::Internals::child_needs(const Child& edge, Permissions parents) {
  const Node& parent = *edge.parent_;
  Permissions needs = parents;
  if (parent.driver_ != nullptr) {
    needs = parent.driver_->child_permissions(edge, parents);
  } else if (parent.type().name != "raw") {
    // While a driver is being opened it cannot say. Raw has no metadata to keep others from.
    needs = default_permissions(edge, parents);
  }
  if (parent.options_.force_share) needs.shares = Permissions::all();
  return needs;
}

Permissions Driver::child_permissions(const Child& edge, Permissions parents) const {
  return default_permissions(edge, parents);
}

Permissions Node::cumulative_permissions() const {
  Permissions sum{{}, Permissions::all()};
  for (const Child* edge : parents_) {
    sum.uses |= edge->permissions().uses;
    sum.shares = sum.shares & edge->permissions().shares;
  }
  return sum;
}

/// One change, from the edge where it starts to the last driver that hears of it.
class Graph::Internals::PermissionChange {
 public:
  void set(Child& edge, Permissions wanted) {
    if (edge.permissions_ == wanted) return;
    edges_.push_back({&edge, edge.permissions_});
    edge.permissions_ = wanted;
    add(*edge.node_);
  }

  // Throws on a conflict.
  void work_out(Node& start) {
    add(start);
    std::vector<Node*> order;
    collect(start, ++start.graph_.visits_, order);
    for (auto node = order.rbegin(); node != order.rend(); ++node) {  // parents first
      if (std::find(nodes_.begin(), nodes_.end(), *node) == nodes_.end()) continue;
      check(**node);
      const Permissions sum = (*node)->cumulative_permissions();
      if (sum == (*node)->tracking_->applied && *node != &start) continue;
      for (Child* edge : (*node)->children_) set(*edge, child_needs(*edge, sum));
    }
  }

  Task<void> apply() {
    for (Node* node : nodes_) {
      const Permissions sum = node->cumulative_permissions();
      const Permissions old = node->tracking_->applied;
      if (node->driver_ == nullptr || sum == old) continue;
      co_await node->driver_->apply_permissions(sum);
      node->tracking_->applied = sum;
      applied_.push_back({node, old});
    }
  }

  Task<void> take_back() {
    for (const auto& [edge, old] : edges_) edge->permissions_ = old;
    for (const auto& [node, old] : applied_) {
      try {
        co_await node->driver_->apply_permissions(old);
        node->tracking_->applied = old;
      } catch (const Error&) {
        // The first failure is the one to report; the driver keeps what it has.
      }
    }
  }

 private:
  void add(Node& node) {
    if (std::find(nodes_.begin(), nodes_.end(), &node) == nodes_.end()) nodes_.push_back(&node);
  }

  static void collect(Node& node, std::uint64_t visit, std::vector<Node*>& order) {
    if (node.tracking_->visit == visit) return;
    node.tracking_->visit = visit;
    for (const Child* edge : node.children_) collect(*edge->node_, visit, order);
    order.push_back(&node);  // after all below it
  }

  static void check(const Node& node) {
    const PermissionSet changing =
        PermissionSet(Permission::write) | Permission::write_unchanged | Permission::resize;
    for (const Child* user : node.parents_) {
      const PermissionSet uses = user->permissions_.uses;
      if (node.read_only() && !(uses & changing).empty()) {
        throw Error(EPERM, fmt::format("Node '{}' is read-only, but {} needs permission to {}",
                                       node.name(), describe(*user), describe(uses & changing)));
      }
      for (const Child* other : node.parents_) {
        const PermissionSet refused = uses.without(other->permissions_.shares);
        if (other == user || refused.empty()) continue;
        throw Error(EPERM,
                    fmt::format("Conflict over node '{}': {} needs permission to {}, which {} does "
                                "not share",
                                node.name(), describe(*user), describe(refused), describe(*other)));
      }
    }
  }

  std::vector<std::pair<Child*, Permissions>> edges_;   // with what they had
  std::vector<std::pair<Node*, Permissions>> applied_;  // with what they knew
  std::vector<Node*> nodes_;                            // that get different permissions
};

Task<void> Graph::Internals::update_permissions(Node& start, Child* edge, Permissions wanted) {
  // Held across the drivers' locking of files: two changes at once could each pass the check and
  // together be a conflict. Nothing else is locked inside.
  AsyncMutex::Guard guard = co_await start.graph_.permission_mutex_.lock();
  PermissionChange change;
  std::exception_ptr failure;
  try {
    if (edge != nullptr) change.set(*edge, wanted);
    change.work_out(start);
    co_await change.apply();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await change.take_back();
    std::rethrow_exception(failure);
  }
}

Task<void> Graph::Internals::relax_permissions(Node& start) {
  try {
    co_await update_permissions(start, nullptr, {});
  } catch (const Error&) {
    // Giving up rights cannot conflict, and a lock that could not be given up is still ours.
  }
}

Task<std::unique_ptr<Child>> Graph::Internals::attach(Node* parent, std::string name, EdgeRole role,
                                                      std::shared_ptr<Node> node,
                                                      const Permissions* wanted) {
  std::unique_ptr<Child> edge(new Child(std::move(name), role, parent));
  const Permissions nothing{{}, Permissions::all()};
  edge->permissions_ = nothing;
  link(*edge, node);
  const Permissions needs = wanted != nullptr ? *wanted : child_needs(*edge, nothing);
  std::exception_ptr failure;
  try {
    co_await update_permissions(*node, edge.get(), needs);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    unlink(*edge);
    std::rethrow_exception(failure);
  }
  co_return edge;
}

Task<std::unique_ptr<Child>> Graph::attach(Node* parent, std::string name, EdgeRole role,
                                           std::shared_ptr<Node> node, Permissions permissions) {
  co_return co_await Internals::attach(parent, std::move(name), role, std::move(node),
                                       &permissions);
}

}  // namespace vise
