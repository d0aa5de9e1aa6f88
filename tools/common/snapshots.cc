#include "tools/common/snapshots.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "graph/drained.h"
#include "util/keyval.h"
#include "vise/error.h"

namespace vise::tools {

SnapshotSelector snapshot_selector(const std::string& text) {
  SnapshotSelector which;
  if (!text.starts_with("snapshot.")) {
    which.word = text;
    return which;
  }
  const Keyval parsed = parse_keyval(text, KeyvalSyntax{});
  for (const auto& [name, value] : parsed.options) {
    if (name == "snapshot.id") {
      which.id = value.as_string();
    } else if (name == "snapshot.name") {
      which.name = value.as_string();
    } else {
      throw Error(EINVAL, fmt::format("Invalid snapshot option '{}': must be snapshot.id or "
                                      "snapshot.name",
                                      name));
    }
  }
  return which;
}

Task<void> view_snapshot(Child& root, SnapshotSelector which) {
  Node& node = root.node();
  auto* driver = find_interface<HasSnapshots>(node);
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no snapshots", node.type().name));
  }
  const auto view = [&] { return driver->view_snapshot(std::move(which)); };
  co_await while_drained(node, view);
}

}  // namespace vise::tools
