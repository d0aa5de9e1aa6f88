// What the files of block/graph/ share: the links between nodes and edges, and the steps of opening
// and of changing permissions. Nested in Graph, whose friendships it has.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "graph/tracking.h"
#include "vise/graph.h"

namespace vise {

struct Graph::Internals {
  // child.cc: edges. Counts of drains travel along them.
  static void link(Child& edge, std::shared_ptr<Node> node);
  static void unlink(Child& edge);

  // drain.cc
  /// Adds `count` drains (or takes away) to `node` and everything above it.
  static void change_quiesced(Node& node, std::ptrdiff_t count);

  // node.cc
  static void refresh_limits(Node& node);  // and those of the filters above it
  static Task<void> close_node(std::shared_ptr<Node> node);

  // permissions.cc
  class PermissionChange;
  /// What `edge` needs, given what the parents of its parent need.
  static Permissions child_needs(const Child& edge, Permissions parents);
  /// Recomputes what `start` and all below it need after `edge` got `wanted` (null: nothing but
  /// the start changed). Throws Error(EPERM) with nothing changed.
  static Task<void> update_permissions(Node& start, Child* edge, Permissions wanted);
  /// After an edge went: never refused.
  static Task<void> relax_permissions(Node& start);

  /// A new edge that asks for `wanted` (null: what child_needs() says).
  static Task<std::unique_ptr<Child>> attach(Node* parent, std::string name, EdgeRole role,
                                             std::shared_ptr<Node> node, const Permissions* wanted);

  // reopen.cc
  static Task<void> switch_node(Node& node, bool read_only);
  static Task<void> switch_nodes(std::vector<Node*> nodes, bool read_only);

  // reopen_options.cc
  class Reopening;

  // open.cc
  /// Does a name without a driver, for a child in this role, go straight to a protocol?
  static bool names_protocol(const OpenContext* parent, EdgeRole role);
  /// Settles which driver is meant, then opens the node.
  static Task<std::shared_ptr<Node>> open_layer(Graph& graph, OpenRequest request,
                                                OpenContext* parent, EdgeRole role);
  /// Takes the generic options out of the request.
  static std::shared_ptr<Node> make_node(Graph& graph, const DriverType& type,
                                         OpenRequest& request);
  /// `type` is null if the content of the child "file" is to tell it.
  static Task<std::shared_ptr<Node>> open_node(Graph& graph, const DriverType* type,
                                               OpenRequest request, OpenContext* parent,
                                               EdgeRole role);
  static Task<void> choose_by_content(OpenContext& context, bool warn);
  /// The node for child `name`: the one that `option` refers to or describes, or the one that
  /// `request` does. Null for a backing file that there is not.
  static Task<std::shared_ptr<Node>> open_described(OpenContext& context, std::string name,
                                                    EdgeRole role, std::optional<Value> option,
                                                    OpenRequest request);
  static void check_for_loop(OpenContext& parent, const Value::Dict& options);
  static Task<void> undo_open(OpenContext& context, std::shared_ptr<Node> node);
  static Task<void> release_abandoned(Graph& graph);
};

}  // namespace vise
