// Where the bytes of a node come from, through filters and down the backing chain.
#include <algorithm>
#include <cerrno>

#include "graph/chain.h"
#include "graph/tracking.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

// A place in the graph on the way down.
struct Position {
  Node* node;
  GuestOffset offset;
};

Task<Extent> map_node(Node& node, GuestRange range, MapMode mode) {
  // Counts for drain like a request through an edge.
  struct InFlight {
    Node::Tracking& tracking;
    explicit InFlight(Node::Tracking& t) : tracking(t) { ++tracking.in_flight; }
    ~InFlight() {
      if (--tracking.in_flight == 0) tracking.idle.wake_all();
    }
  };
  const InFlight guard(node.tracking());
  co_return co_await node.driver().map(range, mode);
}

void take_over(BlockStatus& status, const Extent& extent) {
  status.length = extent.length;
  if (extent.host && extent.node != nullptr) {
    status.host = extent.host;
    status.file = extent.node;
  } else {
    status.host.reset();
    status.file = nullptr;
  }
  switch (extent.kind) {
    case Extent::Kind::zero:
      status.zero = true;
      break;
    case Extent::Kind::compressed:
      status.compressed = true;
      status.stored_length = extent.stored_length;
      status.data = true;
      break;
    case Extent::Kind::data:
      status.data = true;
      break;
    case Extent::Kind::backing:
      return;
  }
  status.allocated = true;
}

// Follows forwarded extents (raw, filters) to the node that knows. The length only shrinks.
Task<Extent> map_forwarded(Position& at, std::uint64_t length, MapMode mode) {
  for (;;) {
    const std::uint64_t size = at.node->size();
    if (at.offset.bytes() >= size) {  // the layer below is shorter: zeros
      co_return Extent{.kind = Extent::Kind::zero, .length = length};
    }
    const GuestRange range{at.offset, std::min(length, size - at.offset.bytes())};
    Extent extent = co_await map_node(*at.node, range, mode);
    length = std::min(length, extent.length);
    const bool follow = extent.kind == Extent::Kind::data && extent.forwarded &&
                        extent.node != nullptr && extent.node != at.node && extent.host;
    if (!follow) co_return extent;
    at = Position{extent.node, GuestOffset(extent.host->bytes())};
  }
}

// What a format takes for data reads as zeros where it is a hole of the file below: that is how
// preallocated clusters look.
Task<void> find_hole_below(BlockStatus& status, const Extent& extent, MapMode mode) {
  if (mode != MapMode::precise || !extent.may_have_holes) co_return;
  if (extent.node == nullptr || !extent.host) co_return;
  Position at{extent.node, GuestOffset(extent.host->bytes())};
  const Extent below = co_await map_forwarded(at, status.length, mode);
  status.length = below.length;
  status.zero = below.kind == Extent::Kind::zero;
}

}  // namespace

Task<BlockStatus> block_status(Node& node, GuestRange range, MapMode mode, const Node* base) {
  BlockStatus status;
  status.length = range.length;
  if (range.empty()) co_return status;
  if (!range.ends_by(node.size())) throw Error(EIO, "Range reaches past the end of the node");
  const Node* const stop = base != nullptr ? &image_of(*base) : nullptr;
  for (Position at{&node, range.start};;) {
    const Extent extent = co_await map_forwarded(at, status.length, mode);
    take_over(status, extent);
    if (extent.kind != Extent::Kind::backing) {
      co_await find_hole_below(status, extent, mode);
      co_return status;
    }
    const Child* below = at.node->backing_child();
    if (below == nullptr) {
      status.zero = true;  // nothing anywhere
      co_return status;
    }
    Node* next = &image_of(below->node());
    if (next == stop) co_return status;
    const std::uint64_t size = below->size();
    if (at.offset.bytes() >= size) {
      // The overlay reads as zeros past the end of a short backing image, whatever is below that.
      status.zero = true;
      co_return status;
    }
    ++status.depth;
    status.length = std::min(status.length, size - at.offset.bytes());
    at.node = &below->node();
  }
}

}  // namespace vise
