// Other options for nodes that are open: all of a list, or none. See Graph::reopen().
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "graph/internals.h"
#include "vise/graph.h"

namespace vise {

/// First everything is worked out, without any change (plan()). Then, in steps that can all be
/// taken back (apply()), nodes become read-only, children are exchanged, drivers prepare for their
/// new options, and nodes become writable. What is left cannot fail.
class Graph::Internals::Reopening {
 public:
  explicit Reopening(Graph& graph) : graph_(graph) {}
  Reopening(const Reopening&) = delete;

  /// Throws Error for what can never be.
  Task<void> plan(NodeChange change);
  /// Throws Error, with nothing changed.
  Task<void> apply();

 private:
  struct Plan {
    std::shared_ptr<Node> node;
    NodeOptions options = {};       // all generic ones
    Value::Dict full_options = {};  // what Node::full_options() becomes
    Value::Dict own = {};           // those of the driver alone
    std::string path = {};
    bool asks_driver = false;  // false: it only follows its parent
    std::function<void()> commit = {};
  };
  /// A child that becomes another one, or comes or goes.
  struct Exchange {
    std::shared_ptr<Node> parent;
    std::string name;
    std::shared_ptr<Node> from = {}, to = {};  // null: none; a backing image alone
    std::unique_ptr<Child> hold = {};          // keeps `from` open until nothing can fail any more
    std::uint64_t size = 0;                    // of the parent, before
    bool done = false;
  };

  Task<void> plan_node(Node& node, Value::Dict options, NodeOptions defaults,
                       NodeChange::Others others, std::string path);
  Task<void> plan_children(const Plan& plan, Value::Dict& options, NodeChange::Others others);
  Task<void> plan_child(const Plan& plan, const std::string& name, Value value,
                        NodeChange::Others others);
  void plan_following(Node& node, bool read_only);
  void add(Plan plan);

  std::vector<Node*> turning(bool read_only) const;
  Task<void> drain();
  Task<void> change();
  Task<void> exchange_all();
  static Task<void> exchange(Exchange& what);
  static Task<void> put(Exchange& what, const std::shared_ptr<Node>& to);
  Task<void> prepare_drivers();
  Task<void> take_back();
  void commit();
  Task<void> let_go();

  Graph& graph_;
  std::vector<Plan> plans_;
  std::vector<Exchange> exchanges_;
  std::vector<std::shared_ptr<Node>> drained_;
  std::vector<Node*> read_only_now_;  // that were writable before
};

}  // namespace vise
