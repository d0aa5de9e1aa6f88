#include "graph/exclusive.h"

#include <fmt/format.h>

#include <cerrno>

#include "graph/tracking.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

Task<void> run_exclusively(Child& edge, GuestRange range, std::function<Task<void>()> work) {
  while (edge.parent() == nullptr && edge.node().tracking().quiesced > 0) {
    const std::shared_ptr<Node> node = edge.shared_node();
    co_await node->tracking().resumed.wait();
  }
  const Node& node = edge.node();
  const PermissionSet uses = edge.permissions().uses;
  if (node.read_only()) throw Error(EROFS, fmt::format("Node '{}' is read-only", node.name()));
  if (!uses.has(Permission::write) && !uses.has(Permission::write_unchanged)) {
    throw Error(EPERM, fmt::format("'{}' of node '{}' was not opened for writing", edge.name(),
                                   node.name()));
  }
  TrackedRequest request(edge, range, TrackedRequest::Change::storage,
                         TrackedRequest::Serialising::yes);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  Task<void> task = work();
  co_await std::move(task);
}

}  // namespace vise
