// Nodes: adding, removing, asking about them.
#include <fmt/format.h>

#include <cerrno>
#include <ranges>
#include <utility>

#include "monitor/commands.h"
#include "monitor/node_info.h"
#include "monitor/services.h"
#include "vise/child.h"
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
  commands.add(command::query_named_block_nodes::name, query_named_block_nodes);
}

}  // namespace vise
