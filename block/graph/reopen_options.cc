#include "graph/reopen_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "bitmap/bitmap_set.h"
#include "graph/node_options.h"
#include "util/clean_up.h"
#include "util/keyval.h"
#include "vise/error.h"
#include "vise/image_operations.h"
#include "vise/options.h"

namespace vise {

namespace {

constexpr Permissions no_permissions{{}, Permissions::all()};

Error cannot_change(const std::string& path, std::string_view name) {
  return Error(EINVAL, fmt::format("Cannot change the option '{}{}'", path, name));
}

// On a command line "on" is what true is in JSON, and "4k" is 4096.
bool same_option(const Value& now, const Value& before) {
  if (now == before) return true;
  if (now.is_dict() && before.is_dict()) {
    const auto in = [](const Value::Dict& other) {
      return [&other](const Value::Member& member) {
        const Value* found = other.find(member.first);
        return found != nullptr && same_option(member.second, *found);
      };
    };
    return now.as_dict().size() == before.as_dict().size() &&
           std::ranges::all_of(now.as_dict(), in(before.as_dict()));
  }
  if (now.is_string() == before.is_string()) return false;
  const Value& text = now.is_string() ? now : before;
  const Value& value = now.is_string() ? before : now;
  try {
    if (value.is_bool()) return parse_bool(text.as_string()) == value.as_bool();
    if (value.is_integer()) return Value(parse_size(text.as_string())) == value;
  } catch (const Error&) {
    // The text is something else.
  }
  return false;
}

// Nested dictionaries are merged.
void lay_over(Value::Dict& options, const Value::Dict& over) {
  for (const auto& [name, value] : over) {
    Value* old = options.find(name);
    if (old != nullptr && old->is_dict() && value.is_dict()) {
      lay_over(old->as_dict(), value.as_dict());
    } else {
      options.set(name, value);
    }
  }
}

bool is_child_option(const Node& node, const std::string& name) {
  return node.child(name) != nullptr || (name == "backing" && node.type().supports_backing);
}

// Those of the driver alone, as the node was opened.
Value::Dict own_options(const Node& node) {
  Value::Dict options = node.full_options();
  options.erase("driver");
  options.erase("node-name");
  take_node_options(options, node.options(), {});
  Value::Dict own;
  for (const auto& [name, value] : options) {
    if (!is_child_option(node, name) && name != "backing") own.set(name, value);
  }
  return own;
}

void check_changeable(const Node& node, const Value::Dict& own, const std::string& path) {
  const auto changeable = node.driver().changeable_options();
  const auto may_change = [&](const std::string& name) {
    return std::ranges::find(changeable, name) != changeable.end();
  };
  const Value::Dict before = own_options(node);
  for (const auto& [name, value] : own) {
    const Value* old = before.find(name);
    const bool same = old != nullptr && same_option(value, *old);
    if (!same && !may_change(name)) throw cannot_change(path, name);
  }
  for (const auto& [name, value] : before) {
    if (own.contains(name) || may_change(name)) continue;
    throw Error(EINVAL,
                fmt::format("Option '{}{}' cannot be reset to its default value", path, name));
  }
}

bool says_read_only(const Node& node) {
  const Value* said = node.full_options().find("read-only");
  return said != nullptr && same_option(Value(true), *said);
}

bool reaches(const Node& from, const Node& to) {
  if (&from == &to) return true;
  return std::ranges::any_of(from.children(),
                             [&](const Child* edge) { return reaches(edge->node(), to); });
}

unsigned height_above(const Node& node) {
  unsigned height = 0;
  for (const Child* edge : node.parents()) {
    if (edge->parent() != nullptr) height = std::max(height, height_above(*edge->parent()) + 1);
  }
  return height;
}

}  // namespace

// --- working it out -----------------------------------------------------------------------------

Task<void> Graph::Internals::Reopening::plan(NodeChange change) {
  Node& node = *change.node;
  NodeOptions defaults;
  Value::Dict options = nest_dotted_keys(std::move(change.options));
  if (change.others == NodeChange::Others::stay) {
    Value::Dict all = node.full_options();
    lay_over(all, options);
    options = std::move(all);
    defaults = node.options();
  }
  co_await plan_node(node, std::move(options), defaults, change.others, change.option_path);
}

Task<void> Graph::Internals::Reopening::plan_node(Node& node, Value::Dict options,
                                                  NodeOptions defaults, NodeChange::Others others,
                                                  std::string path) {
  const NodeOptions& old = node.options();
  options = nest_dotted_keys(std::move(options));
  Plan plan{.node = node.shared_from_this(), .full_options = options, .path = path};
  plan.asks_driver = true;
  plan.full_options.set("driver", std::string(node.type().name));
  const std::optional<Value> driver = options.take("driver");
  if (driver && *driver != Value(node.type().name)) throw cannot_change(path, "driver");
  const std::optional<Value> name = options.take("node-name");
  if (name && *name != Value(node.name())) throw cannot_change(path, "node-name");
  defaults.node_name = old.node_name;
  plan.options = take_node_options(options, defaults, path);
  plan.options.purpose = old.purpose;
  if (plan.options.force_share != old.force_share) throw cannot_change(path, "force-share");
  // The file settled it, and does so again.
  const bool may_stay = plan.options.auto_read_only && old.auto_read_only && !says_read_only(node);
  if (old.read_only && may_stay) plan.options.read_only = true;
  co_await plan_children(plan, options, others);
  check_changeable(node, options, path);
  plan.own = std::move(options);
  add(std::move(plan));
}

// Takes those of children out of `options`.
Task<void> Graph::Internals::Reopening::plan_children(const Plan& plan, Value::Dict& options,
                                                      NodeChange::Others others) {
  const Node& node = *plan.node;
  std::vector<std::string> names;
  for (const auto& [name, value] : options) {
    if (is_child_option(node, name)) names.push_back(name);
  }
  std::vector<Child*> unnamed = node.children();
  for (const std::string& name : names) {
    std::erase(unnamed, node.child(name));
    Value value = *options.take(name);
    co_await plan_child(plan, name, std::move(value), others);
  }
  bool lacks_backing = false;
  for (const Child* edge : unnamed) {
    if (edge->role() == EdgeRole::backing) {
      lacks_backing = true;
    } else if (edge->role() == EdgeRole::data_file || others == NodeChange::Others::stay) {
      plan_following(edge->node(), plan.options.read_only);
    } else {
      throw Error(EINVAL, fmt::format("Parameter '{}{}' is missing", plan.path, edge->name()));
    }
  }
  if (others == NodeChange::Others::stay || !node.type().supports_backing) co_return;
  const bool named = std::ranges::find(names, "backing") != names.end();
  if (!named && !lacks_backing) {
    const DriverInfo info = co_await node.driver().info();
    lacks_backing = info.backing_filename && !info.backing_filename->empty();
  }
  if (lacks_backing) {
    throw Error(EINVAL, fmt::format("Parameter '{}backing' is missing for '{}': the name of a "
                                    "node, or null for none",
                                    plan.path, node.name()));
  }
}

Task<void> Graph::Internals::Reopening::plan_child(const Plan& plan, const std::string& name,
                                                   Value value, NodeChange::Others others) {
  const Node& node = *plan.node;
  const Child* const edge = node.child(name);
  const std::string option = fmt::format("{}{}", plan.path, name);
  const bool is_backing = name == "backing";
  if (value.is_dict()) {
    if (edge == nullptr || edge->node().owned_by_graph()) {
      throw Error(EINVAL, fmt::format("Option '{}' must be the name of a node: there is none that "
                                      "was opened together with '{}'",
                                      option, node.name()));
    }
    co_await plan_node(edge->node(), std::move(value.as_dict()),
                       inherited_options(plan.options, edge->role()), others, option + ".");
    co_return;
  }
  const bool none = value.is_null() || (value.is_string() && value.as_string().empty());
  if ((none && !is_backing) || (!none && !value.is_string())) {
    throw Error(EINVAL, fmt::format("Option '{}' must be a node name or an object", option));
  }
  std::shared_ptr<Node> to;
  if (!none) {
    Node* const found = graph_.find(value.as_string());
    if (found == nullptr) {
      throw Error(ENOENT, fmt::format("Option '{}': there is no node named '{}'", option,
                                      value.as_string()));
    }
    to = found->shared_from_this();
  }
  if (edge == nullptr && to == nullptr) co_return;
  if (edge != nullptr && edge->shared_node() == to) {
    const bool carries = !is_backing && !to->owned_by_graph();
    if (carries) plan_following(*to, plan.options.read_only);
    co_return;
  }
  Exchange exchange{.parent = plan.node, .name = name};
  if (edge != nullptr) exchange.from = edge->shared_node();
  exchange.to = std::move(to);
  std::erase_if(exchanges_, [&](const Exchange& other) {
    return other.parent == exchange.parent && other.name == name;
  });
  exchanges_.push_back(std::move(exchange));
}

// What was opened for its parent's sake goes with it, unless others use it or it is said otherwise.
void Graph::Internals::Reopening::plan_following(Node& node, bool read_only) {
  if (node.read_only() == read_only || node.owned_by_graph()) return;
  if (read_only ? node.parents().size() > 1 : says_read_only(node)) return;
  Plan plan{.node = node.shared_from_this(),
            .options = node.options(),
            .full_options = node.full_options()};
  plan.options.read_only = read_only;
  add(std::move(plan));
  for (const Child* edge : node.children()) {
    if (edge->role() != EdgeRole::backing) plan_following(edge->node(), read_only);
  }
}

void Graph::Internals::Reopening::add(Plan plan) {
  std::erase_if(plans_, [&](const Plan& other) { return other.node == plan.node; });
  plans_.push_back(std::move(plan));
}

// --- doing it -----------------------------------------------------------------------------------

// Those that become read-only, or writable; parents first.
std::vector<Node*> Graph::Internals::Reopening::turning(bool read_only) const {
  std::vector<Node*> nodes;
  for (const Plan& plan : plans_) {
    const bool turns = plan.node->read_only() != plan.options.read_only;
    if (turns && plan.options.read_only == read_only) nodes.push_back(plan.node.get());
  }
  std::ranges::stable_sort(nodes, {}, [](const Node* node) { return height_above(*node); });
  return nodes;
}

Task<void> Graph::Internals::Reopening::drain() {
  std::vector<std::shared_ptr<Node>> nodes;
  for (const Plan& plan : plans_) nodes.push_back(plan.node);
  for (const Exchange& exchange : exchanges_) {
    if (exchange.from) nodes.push_back(exchange.from);
    if (exchange.to) nodes.push_back(exchange.to);
  }
  for (std::shared_ptr<Node>& node : nodes) {
    co_await node->drain_begin();
    drained_.push_back(std::move(node));
  }
}

Task<void> Graph::Internals::Reopening::apply() {
  std::exception_ptr failure;
  try {
    co_await drain();
    co_await change();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await take_back();
  } else {
    commit();
  }
  co_await let_go();
  if (failure) std::rethrow_exception(failure);
}

Task<void> Graph::Internals::Reopening::change() {
  std::vector<Node*> nodes = turning(true);
  co_await switch_nodes(nodes, true);
  read_only_now_ = std::move(nodes);
  co_await exchange_all();
  co_await prepare_drivers();
  co_await switch_nodes(turning(false), false);
}

// Rights are given up before the nodes below are others, and taken anew when all are in place: a
// filter that is slipped in, or taken out, would be in its own way.
Task<void> Graph::Internals::Reopening::exchange_all() {
  for (Exchange& what : exchanges_) {
    if (!what.parent->read_only()) co_await what.parent->driver().flush();
  }
  for (Exchange& what : exchanges_) co_await exchange(what);
  for (Exchange& what : exchanges_) co_await update_permissions(*what.parent, nullptr, {});
  for (Exchange& what : exchanges_) {
    const Node& parent = *what.parent;
    if (parent.size() == what.size) continue;
    if (!parent.cumulative_permissions().shares.has(Permission::resize)) {
      throw Error(EBUSY, fmt::format("With '{}' as its '{}', the size of node '{}' would change, "
                                     "which is in use",
                                     what.to->name(), what.name, parent.name()));
    }
  }
}

Task<void> Graph::Internals::Reopening::exchange(Exchange& what) {
  if (what.to != nullptr && reaches(*what.to, *what.parent)) {
    throw Error(ELOOP, fmt::format("Making '{}' a child of '{}' would create a cycle",
                                   what.to->name(), what.parent->name()));
  }
  if (what.from != nullptr) {
    std::unique_ptr<Child> hold = co_await Internals::attach(
        nullptr, std::string("reopen"), EdgeRole::root, what.from, &no_permissions);
    what.hold = std::move(hold);
  }
  what.size = what.parent->size();
  what.done = true;  // half of it has to be taken back, too
  co_await put(what, what.to);
}

Task<void> Graph::Internals::Reopening::put(Exchange& what, const std::shared_ptr<Node>& to) {
  Child* const edge = what.parent->child(what.name);
  if (edge != nullptr && to != nullptr) {
    if (edge->shared_node() == to) co_return;
    co_await edge->set_permissions(no_permissions);
    co_await edge->replace_node(to);
    co_return;
  }
  auto* const image = dynamic_cast<HasBackingFile*>(&what.parent->driver());
  if (image == nullptr) {
    throw Error(ENOTSUP, fmt::format("Driver '{}' cannot change its backing image while it is open",
                                     what.parent->type().name));
  }
  if (edge != nullptr) {
    const std::unique_ptr<Child> old = image->exchange_backing(nullptr);
    co_await old->detach();
  } else if (to != nullptr) {
    std::unique_ptr<Child> added = co_await Internals::attach(
        what.parent.get(), what.name, EdgeRole::backing, to, &no_permissions);
    image->exchange_backing(std::move(added));
  }
}

Task<void> Graph::Internals::Reopening::prepare_drivers() {
  for (Plan& plan : plans_) {
    if (!plan.asks_driver) continue;
    OpenContext context(*plan.node);
    context.options_ = plan.own;
    context.option_path_ = plan.path;
    context.wanted_ = &plan.options;
    std::function<void()> commit = co_await plan.node->driver().prepare_reopen(context);
    plan.commit = std::move(commit);
  }
}

// The first failure is the one to report, and rights that were there can be had again.
Task<void> Graph::Internals::Reopening::take_back() {
  for (auto what = exchanges_.rbegin(); what != exchanges_.rend(); ++what) {
    if (!what->done) continue;
    try {
      co_await put(*what, what->from);
    } catch (const Error&) {
      // Nothing else can be done.
    }
  }
  for (const Exchange& what : exchanges_) {
    if (what.done) co_await relax_permissions(*what.parent);
  }
  try {
    co_await switch_nodes(read_only_now_, false);
  } catch (const Error&) {
    // They stay read-only.
  }
}

void Graph::Internals::Reopening::commit() {
  for (Plan& plan : plans_) {
    Node& node = *plan.node;
    if (plan.commit) plan.commit();
    node.options_ = std::move(plan.options);
    node.full_options_ = std::move(plan.full_options);
  }
  for (const Plan& plan : plans_) {
    refresh_limits(*plan.node);
    const std::unique_ptr<BitmapSet>& bitmaps = plan.node->tracking().bitmaps;
    if (bitmaps) bitmaps->resize(plan.node->size());
  }
}

Task<void> Graph::Internals::Reopening::let_go() {
  for (const std::shared_ptr<Node>& node : drained_) node->drain_end();
  for (Exchange& what : exchanges_) {
    if (!what.hold) continue;
    try {
      co_await what.hold->detach();
    } catch (const Error& error) {
      // It is not part of the graph any more; only its last flush can have failed.
      graph_.on_warning(fmt::format("Closing a node that was replaced: {}", error.message()));
    }
  }
}

Task<void> Graph::reopen(std::vector<NodeChange> changes) {
  Internals::Reopening reopening(*this);
  for (NodeChange& change : changes) co_await reopening.plan(std::move(change));
  co_await reopening.apply();
}

}  // namespace vise
