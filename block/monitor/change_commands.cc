// Changes of single nodes: size, backing file name, threshold.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <utility>

#include "graph/chain.h"
#include "graph/drained.h"
#include "graph/held.h"
#include "graph/tracking.h"
#include "job/job_filter.h"
#include "monitor/commands.h"
#include "monitor/job_settings.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise {

namespace {

Task<void> block_resize(Services& services, qapi::BlockResizeArguments arguments) {
  if (arguments.device.has_value() == arguments.node_name.has_value()) {
    throw Error(EINVAL, "Need either 'device' or 'node-name'");
  }
  Node& node = get_device(services, arguments.device ? *arguments.device : *arguments.node_name);
  services.jobs().require_idle(node);
  services.jobs().require_idle(image_of(node));
  if (arguments.size < 0) {
    throw Error(EINVAL,
                fmt::format("Parameter 'size' expects a size >= 0, not {}", arguments.size));
  }
  const auto size = static_cast<std::uint64_t>(arguments.size);
  if (image_of(node).type().kind == DriverKind::format && size % 512 != 0) {
    throw Error(EINVAL, fmt::format("The new size must be a multiple of 512, not {}", size));
  }
  if (node.read_only()) throw Error(EROFS, fmt::format("Node '{}' is read-only", node.name()));
  const Permissions wanted{PermissionSet(Permission::resize) | Permission::write,
                           Permissions::all()};
  std::unique_ptr<Child> edge = co_await services.graph().attach(
      nullptr, std::string("block_resize"), EdgeRole::root, node.shared_from_this(), wanted);
  co_await with_child(std::move(edge), [size](Child& disk) {
    return disk.truncate(size, TruncateOptions{.exact = false});
  });
}

Task<void> change_backing_file(Services& services, qapi::ChangeBackingFileArguments arguments) {
  Node& device = get_device(services, arguments.device);
  Node& node = get_node(services, arguments.image_node_name);
  services.jobs().require_idle(device);
  services.jobs().require_idle(node);
  for (const Child* edge : device.parents()) {
    if (edge->parent() != nullptr) {
      throw Error(EPERM, fmt::format("Need a root block node, but '{}' is below '{}'",
                                     device.name(), edge->parent()->name()));
    }
  }
  const Node* found = &device;
  while (found != nullptr && found != &node) found = backing_of(const_cast<Node&>(*found));
  if (found == nullptr && &image_of(device) != &node) {
    throw Error(EINVAL,
                fmt::format("'{}' and image file are not in the same chain", arguments.device));
  }
  const Node* const backing = backing_of(node);
  if (backing == nullptr)
    throw Error(ENOENT, "not allowing backing file change on an image without a backing file");
  auto* const image = dynamic_cast<HasBackingFile*>(&node.driver());
  if (image == nullptr) {
    throw Error(ENOTSUP,
                fmt::format("Images of format '{}' name no backing file", node.type().name));
  }
  const bool was_read_only = node.read_only();
  if (was_read_only) co_await services.graph().reopen(node, false);
  std::string format = arguments.backing_file.empty()
                           ? std::string()
                           : std::string(image_of(const_cast<Node&>(*backing)).type().name);
  const std::function<Task<void>()> work = [&] {
    return image->change_backing_file(arguments.backing_file, format);
  };
  std::exception_ptr failure;
  try {
    co_await while_drained(node, work);
  } catch (...) {
    failure = std::current_exception();
  }
  if (was_read_only) co_await services.graph().reopen(node, true);
  if (failure) std::rethrow_exception(failure);
}

Task<void> blockdev_set_active(Services& services, qapi::BlockdevSetActiveArguments arguments) {
  if (arguments.node_name) get_node(services, *arguments.node_name);
  if (!arguments.active)
    throw Error(ENOTSUP, "Nodes cannot be made inactive: inactive nodes are not supported");
  co_return;
}

Task<void> block_set_write_threshold(Services& services,
                                     qapi::BlockSetWriteThresholdArguments arguments) {
  get_node(services, arguments.node_name).tracking().write_threshold = arguments.write_threshold;
  co_return;
}

}  // namespace

void add_change_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::block_resize, block_resize>();
  commands.add<command::change_backing_file, change_backing_file>();
  commands.add<command::blockdev_set_active, blockdev_set_active>();
  commands.add<command::block_set_write_threshold, block_set_write_threshold>();
}

}  // namespace vise
