// Finding internal snapshots as the command lines name them.
#pragma once

#include <string>

#include "vise/child.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::tools {

/// The first driver from `node` down through filters that offers the interface; null if none does.
template <class Interface>
Interface* find_interface(Node& node) {
  for (Node* at = &node;;) {
    if (auto* found = dynamic_cast<Interface*>(&at->driver())) return found;
    const Child* below = at->filtered_child();
    if (below == nullptr) return nullptr;
    at = &below->node();
  }
}

/// "snapshot.id=…,snapshot.name=…", or a word tried as ID, then as name.
SnapshotSelector snapshot_selector(const std::string& text);

/// From now on `root`, which is read-only, shows what the snapshot holds.
/// Throws Error(ENOTSUP) if the format knows no snapshots, ENOENT if there is no such snapshot.
Task<void> view_snapshot(Child& root, SnapshotSelector which);

}  // namespace vise::tools
