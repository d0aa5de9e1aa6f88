// Snapshots: overlays above a node, and those inside an image.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "graph/chain.h"
#include "graph/drained.h"
#include "job/job_filter.h"
#include "monitor/commands.h"
#include "monitor/job_settings.h"
#include "monitor/snapshot_actions.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise {

namespace {

// Puts `overlay` above `node`: what was above the one is above the other.
class Overlaying {
 public:
  Overlaying(Services& services, Node& node, Node& overlay)
      : services_(services), node_(node.shared_from_this()), overlay_(overlay.shared_from_this()) {}

  Task<void> apply() {
    check();
    was_read_only_ = node_->read_only();
    const std::function<Task<void>()> work = [this] { return link(); };
    co_await while_drained(*node_, work);
    // Its former parents write to the overlay now.
    try {
      co_await services_.graph().reopen(*node_, true);
    } catch (const Error&) {
      // It stays writable where others hold it so; nobody writes to it through here.
    }
  }

  Task<void> undo() {
    if (!linked_) co_return;
    if (!was_read_only_) co_await services_.graph().reopen(*node_, false);
    const std::function<Task<void>()> work = [this] { return unlink(); };
    co_await while_drained(*overlay_, work);
  }

 private:
  void check() {
    services_.jobs().require_idle(*node_);
    services_.jobs().require_idle(*overlay_);
    if (overlay_ == node_) throw Error(EINVAL, "A node cannot be its own overlay");
    if (!overlay_->parents().empty()) {
      throw Error(EBUSY, fmt::format("The overlay '{}' is already in use", overlay_->name()));
    }
    if (backing_of(*overlay_) != nullptr) {
      throw Error(EBUSY, "The overlay already has a backing image");
    }
    if (image() == nullptr || !image_of(*overlay_).type().supports_backing) {
      throw Error(ENOTSUP, fmt::format("The overlay '{}' does not support backing images",
                                       overlay_->name()));
    }
    for (const Child* edge : node_->parents()) {
      if (edge->role() == EdgeRole::backing) {
        throw Error(EBUSY, fmt::format("Node '{}' is the backing image of '{}'", node_->name(),
                                       edge->parent()->name()));
      }
    }
    for (Node* below = node_.get(); below != nullptr; below = backing_of(*below)) {
      if (&image_of(*below) == &image_of(*overlay_)) {
        throw Error(ELOOP, fmt::format("Making '{}' a backing image of '{}' would create a cycle",
                                       node_->name(), overlay_->name()));
      }
    }
  }

  HasBackingFile* image() const {
    return dynamic_cast<HasBackingFile*>(&image_of(*overlay_).driver());
  }

  Task<void> link() {
    // Writers move first: an overlay does not share writing with others below it.
    std::vector<Child*> edges = node_->parents();
    std::size_t moved = 0;
    std::exception_ptr failure;
    try {
      for (; moved < edges.size(); ++moved) co_await edges[moved]->replace_node(overlay_);
      const Permissions wanted{Permission::consistent_read, Permissions::all()};
      Node& above = image_of(*overlay_);
      std::unique_ptr<Child> edge = co_await services_.graph().attach(
          &above, std::string("backing"), EdgeRole::backing, node_, wanted);
      image()->exchange_backing(std::move(edge));
    } catch (...) {
      failure = std::current_exception();
    }
    if (!failure) {
      moved_ = std::move(edges);
      linked_ = true;
      co_return;
    }
    while (moved-- > 0) co_await edges[moved]->replace_node(node_);
    std::rethrow_exception(failure);
  }

  Task<void> unlink() {
    const std::unique_ptr<Child> edge = image()->exchange_backing(nullptr);
    if (edge) co_await edge->detach();
    for (Child* moved : moved_) co_await moved->replace_node(node_);
    linked_ = false;
  }

  Services& services_;
  std::shared_ptr<Node> node_;
  std::shared_ptr<Node> overlay_;
  std::vector<Child*> moved_;
  bool linked_ = false;
  bool was_read_only_ = false;
};

class Snapshot final : public Action {
 public:
  Snapshot(Services& services, Node& node, Node& overlay) : overlaying_(services, node, overlay) {}
  Task<void> prepare() override { return overlaying_.apply(); }
  Task<void> roll_back() override { return overlaying_.undo(); }

 private:
  Overlaying overlaying_;
};

class SnapshotSync final : public Action {
 public:
  SnapshotSync(Services& services, qapi::BlockdevSnapshotSync snapshot)
      : services_(services), wanted_(std::move(snapshot)) {}

  Task<void> prepare() override {
    if (wanted_.device.has_value() == wanted_.node_name.has_value()) {
      throw Error(EINVAL, "Need either 'device' or 'node-name'");
    }
    if (wanted_.node_name && !wanted_.snapshot_node_name) {
      throw Error(EINVAL, "New overlay node name missing");
    }
    Node& node = get_device(services_, wanted_.device ? *wanted_.device : *wanted_.node_name);
    services_.jobs().require_idle(node);
    const std::string format = wanted_.format.value_or("qcow2");
    if (wanted_.mode != qapi::NewImageMode::existing) co_await create(node, format);
    OpenRequest request;
    request.options.set("driver", format);
    request.options.set("file.driver", "file");
    request.options.set("file.filename", wanted_.snapshot_file);
    request.options.set("backing", Value());
    if (wanted_.snapshot_node_name) request.options.set("node-name", *wanted_.snapshot_node_name);
    std::shared_ptr<Node> overlay = co_await services_.graph().open(std::move(request));
    overlay_ = overlay;
    services_.graph().adopt(overlay_);
    overlaying_.emplace(services_, node, *overlay_);
    std::exception_ptr failure;
    try {
      co_await overlaying_->apply();
    } catch (...) {
      failure = std::current_exception();
    }
    if (!failure) co_return;
    co_await services_.graph().disown(*overlay_);
    std::rethrow_exception(failure);
  }

  Task<void> roll_back() override {
    co_await overlaying_->undo();
    co_await services_.graph().disown(*overlay_);
  }

 private:
  Task<void> create(Node& node, std::string format) {
    DriverTable& drivers = services_.context().drivers();
    const DriverType& type = drivers.get(format);
    if (type.create == nullptr || !type.supports_backing) {
      throw Error(ENOTSUP,
                  fmt::format("Format '{}' cannot be created with a backing image", format));
    }
    const Node& below = image_of(node);
    const std::string backing = below.filename();
    CreateRequest file{.graph = services_.graph(), .filename = wanted_.snapshot_file, .size = 0};
    co_await drivers.get("file").create(file);
    OpenRequest open;
    open.options.set("driver", "file");
    open.options.set("filename", wanted_.snapshot_file);
    std::shared_ptr<Node> made = co_await services_.graph().open(std::move(open));
    CreateRequest image{.graph = services_.graph(), .filename = wanted_.snapshot_file, .size = 0};
    image.size = node.size();
    image.file = made;
    image.options.set("backing_file", backing.starts_with("json:")
                                          ? backing
                                          : std::filesystem::absolute(backing).string());
    image.options.set("backing_fmt", below.type().name);
    std::exception_ptr failure;
    try {
      co_await type.create(image);
    } catch (...) {
      failure = std::current_exception();
    }
    image.file.reset();
    co_await services_.graph().release(std::move(made));
    if (failure) std::rethrow_exception(failure);
  }

  Services& services_;
  const qapi::BlockdevSnapshotSync wanted_;
  std::shared_ptr<Node> overlay_;
  std::optional<Overlaying> overlaying_;
};

// --- inside an image ----------------------------------------------------------------------------

HasSnapshots& snapshots_of(Node& node) {
  auto* driver = dynamic_cast<HasSnapshots*>(&image_of(node).driver());
  if (driver != nullptr) return *driver;
  throw Error(ENOTSUP, fmt::format("Block format '{}' used by node '{}' does not support internal "
                                   "snapshots",
                                   image_of(node).type().name, node.name()));
}

// The SnapshotInfo dictionary of the one that matches, or null.
Task<Value> find_snapshot(Node& node, std::optional<std::string> id,
                          std::optional<std::string> name) {
  const DriverInfo info = co_await image_of(node).driver().info();
  if (!info.snapshots.is_list()) co_return Value();
  for (const Value& snapshot : info.snapshots.as_list()) {
    const Value::Dict& dict = snapshot.as_dict();
    if ((!id || *dict.find("id") == Value(*id)) && (!name || *dict.find("name") == Value(*name))) {
      co_return snapshot;
    }
  }
  co_return Value();
}

class SnapshotInternal final : public Action {
 public:
  SnapshotInternal(Services& services, qapi::BlockdevSnapshotInternal snapshot)
      : services_(services), wanted_(std::move(snapshot)) {}

  Task<void> prepare() override {
    Node& node = get_device(services_, wanted_.device);
    services_.jobs().require_idle(image_of(node));
    HasSnapshots& image = snapshots_of(node);
    if (wanted_.name.empty()) throw Error(EINVAL, "Name is empty");
    const Value taken = co_await find_snapshot(node, std::nullopt, wanted_.name);
    if (!taken.is_null()) {
      throw Error(EEXIST, fmt::format("Snapshot with name '{}' already exists on device '{}'",
                                      wanted_.name, wanted_.device));
    }
    node_ = node.shared_from_this();
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now);
    NewSnapshot snapshot;
    snapshot.name = wanted_.name;
    snapshot.seconds = static_cast<std::uint32_t>(seconds.count());
    snapshot.nanoseconds =
        static_cast<std::uint32_t>(std::chrono::nanoseconds(now - seconds).count());
    const std::function<Task<void>()> work = [&] { return image.create_snapshot(snapshot); };
    co_await while_drained(image_of(node), work);
  }

  Task<void> roll_back() override {
    SnapshotSelector which;
    which.name = wanted_.name;
    HasSnapshots& image = snapshots_of(*node_);
    const std::function<Task<void>()> work = [&] { return image.delete_snapshot(which); };
    co_await while_drained(image_of(*node_), work);
  }

 private:
  Services& services_;
  const qapi::BlockdevSnapshotInternal wanted_;
  std::shared_ptr<Node> node_;
};

Task<void> blockdev_snapshot(Services& services, qapi::BlockdevSnapshot snapshot) {
  return run_action(snapshot_action(services, std::move(snapshot)));
}
Task<void> blockdev_snapshot_sync(Services& services, qapi::BlockdevSnapshotSync snapshot) {
  return run_action(snapshot_sync_action(services, std::move(snapshot)));
}
Task<void> blockdev_snapshot_internal_sync(Services& services,
                                           qapi::BlockdevSnapshotInternal snapshot) {
  return run_action(snapshot_internal_action(services, std::move(snapshot)));
}

Task<qapi::SnapshotInfo> delete_internal(
    Services& services, qapi::BlockdevSnapshotDeleteInternalSyncArguments arguments) {
  if (!arguments.id && !arguments.name) throw Error(EINVAL, "Name or id must be provided");
  Node& node = get_device(services, arguments.device);
  services.jobs().require_idle(image_of(node));
  HasSnapshots& image = snapshots_of(node);
  const Value found = co_await find_snapshot(node, arguments.id, arguments.name);
  if (found.is_null()) {
    throw Error(ENOENT, fmt::format("Snapshot with id '{}' and name '{}' does not exist on device "
                                    "'{}'",
                                    arguments.id.value_or("null"), arguments.name.value_or("null"),
                                    arguments.device));
  }
  qapi::SnapshotInfo info;
  read(ValueReader(found, ValueInput::json), info);
  SnapshotSelector which;
  which.id = info.id;
  const std::function<Task<void>()> work = [&] { return image.delete_snapshot(which); };
  co_await while_drained(image_of(node), work);
  co_return info;
}

}  // namespace

std::unique_ptr<Action> snapshot_action(Services& services, qapi::BlockdevSnapshot snapshot) {
  return std::make_unique<Snapshot>(services, get_device(services, snapshot.node),
                                    get_device(services, snapshot.overlay));
}

std::unique_ptr<Action> snapshot_sync_action(Services& services,
                                             qapi::BlockdevSnapshotSync snapshot) {
  return std::make_unique<SnapshotSync>(services, std::move(snapshot));
}

std::unique_ptr<Action> snapshot_internal_action(Services& services,
                                                 qapi::BlockdevSnapshotInternal snapshot) {
  return std::make_unique<SnapshotInternal>(services, std::move(snapshot));
}

void add_snapshot_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::blockdev_snapshot, blockdev_snapshot>();
  commands.add<command::blockdev_snapshot_sync, blockdev_snapshot_sync>();
  commands.add<command::blockdev_snapshot_internal_sync, blockdev_snapshot_internal_sync>();
  commands.add<command::blockdev_snapshot_delete_internal_sync, delete_internal>();
}

}  // namespace vise
