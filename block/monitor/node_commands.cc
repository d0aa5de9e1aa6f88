// Nodes: adding, removing, asking about them.
#include <fmt/format.h>

#include <cerrno>
#include <ranges>
#include <utility>

#include "monitor/commands.h"
#include "monitor/node_info.h"
#include "monitor/services.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"

namespace vise {

Node& get_node(Services& services, std::string_view node_name) {
  Node* const node = services.graph().find(node_name);
  if (node != nullptr) return *node;
  throw Error(ENOENT, fmt::format("Failed to find node with node-name='{}'", node_name));
}

namespace {

// The drivers read their options themselves, which plugins need as well: this only insists on the
// types of JSON.
void check_types(const Value::Dict& options, std::string_view path) {
  const Value* driver = options.find("driver");
  const auto names = names_of(qapi::BlockdevDriver());
  const bool known = driver != nullptr && driver->is_string() &&
                     std::ranges::find(names, driver->as_string()) != names.end();
  if (known) {
    const Value value(options);
    qapi::BlockdevOptions typed;
    read(ValueReader(value, ValueInput::json, path), typed);
  }
  for (const auto& [name, value] : options) {
    if (value.is_dict()) check_types(value.as_dict(), fmt::format("{}{}.", path, name));
  }
}

Task<Value> blockdev_add(Services& services, Value arguments) {
  Value::Dict& options = arguments.as_dict();
  if (!options.contains("driver")) throw Error(EINVAL, "Parameter 'driver' is missing");
  check_types(options, {});
  if (!options.contains("node-name")) {
    throw Error(EINVAL, "'node-name' must be specified for the root node");
  }
  OpenRequest request;
  request.options = std::move(options);
  std::shared_ptr<Node> node = co_await services.graph().open(std::move(request));
  services.graph().adopt(std::move(node));
  co_return Value(Value::Dict());
}

// Whatever `options` change: the node, and those below it that they describe in place.
void require_reopenable(Services& services, const Node& node, const Value::Dict& options) {
  services.jobs().require_idle(node);
  // The filters of jobs stand in no table.
  if (services.context().drivers().find(node.type().name) != &node.type()) {
    throw Error(EBUSY, fmt::format("Node '{}' belongs to a job", node.name()));
  }
  for (const Child* child : node.children()) {
    const Value* const nested = options.find(child->name());
    if (nested != nullptr && nested->is_dict()) {
      require_reopenable(services, child->node(), nested->as_dict());
    }
  }
}

Task<Value> blockdev_reopen(Services& services, Value arguments) {
  const ValueReader where(arguments, ValueInput::json);
  DictReader reader(where);
  const Value* const given = reader.require("options");
  reader.finish();
  if (!given->is_list()) {
    throw Error(EINVAL, "Invalid parameter type for 'options', expected: array");
  }
  std::vector<NodeChange> changes;
  for (const Value& entry : given->as_list()) {
    const std::string path = fmt::format("options[{}].", changes.size());
    if (!entry.is_dict()) {
      throw Error(EINVAL, fmt::format("Invalid parameter type for 'options[{}]', expected: object",
                                      changes.size()));
    }
    const Value::Dict& options = entry.as_dict();
    if (!options.contains("driver")) {
      throw Error(EINVAL, fmt::format("Parameter '{}driver' is missing", path));
    }
    check_types(options, path);
    const Value* const name = options.find("node-name");
    if (name == nullptr) throw Error(EINVAL, "node-name not specified");
    Node& node = get_node(services, name->as_string());
    require_reopenable(services, node, options);
    NodeChange change{.node = node.shared_from_this(), .options = options, .option_path = path};
    changes.push_back(std::move(change));
  }
  co_await services.graph().reopen(std::move(changes));
  co_return Value(Value::Dict());
}

std::string describe_use(const Child& edge) {
  if (edge.parent() == nullptr) return fmt::format("node is used by '{}'", edge.name());
  if (edge.role() == EdgeRole::backing) {
    return fmt::format("node is used as backing hd of '{}'", edge.parent()->name());
  }
  return fmt::format("node is used as '{}' of '{}'", edge.name(), edge.parent()->name());
}

Task<void> blockdev_del(Services& services, qapi::BlockdevDelArguments arguments) {
  Node& node = get_node(services, arguments.node_name);
  if (!node.owned_by_graph()) {
    throw Error(EPERM, fmt::format("Node {} is not owned by the monitor", node.name()));
  }
  if (!node.parents().empty()) {
    throw Error(EBUSY, fmt::format("Node '{}' is busy: {}", node.name(),
                                   describe_use(*node.parents().front())));
  }
  co_await services.graph().disown(node);
}

Task<Value> query_named_block_nodes(Services& services, Value arguments) {
  qapi::QueryNamedBlockNodesArguments typed;
  read(ValueReader(arguments, ValueInput::json), typed);
  const Chain chain = typed.flat.value_or(false) ? Chain::top_only : Chain::whole;
  std::vector<std::shared_ptr<Node>> nodes;
  for (Node* node : services.graph().nodes()) nodes.push_back(node->shared_from_this());
  Value::List result;
  for (const auto& node : std::views::reverse(nodes)) {
    Value info = co_await node_info(*node, chain);
    result.push_back(std::move(info));
  }
  co_return result;
}

}  // namespace

void add_node_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add(command::blockdev_add::name, blockdev_add);
  commands.add<command::blockdev_del, blockdev_del>();
  commands.add(command::blockdev_reopen::name, blockdev_reopen);
  commands.add(command::query_named_block_nodes::name, query_named_block_nodes);
}

}  // namespace vise
