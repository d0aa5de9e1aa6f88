#include "export/nbd/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <exception>
#include <utility>

#include "export/nbd/protocol.h"
#include "graph/bitmaps.h"
#include "vise/util/checked.h"

namespace vise::nbd {

namespace {

void check_text(std::string_view what, std::string_view text) {
  if (text.size() > max_string) {
    throw Error(EINVAL, fmt::format("The {} of an NBD export has {} bytes, allowed are 0 to {}",
                                    what, text.size(), max_string));
  }
  if (text.find('\0') != std::string_view::npos) {
    throw Error(EINVAL, fmt::format("The {} of an NBD export contains a zero byte", what));
  }
}

struct FoundBitmap {
  Node* node;
  NodeBitmap* bitmap;
};

FoundBitmap find_bitmap(Node& top, const ExportOptions::Bitmap& wanted) {
  if (!wanted.node.empty()) {
    Node* node = top.graph().find(wanted.node);
    if (node == nullptr) throw Error(ENOENT, fmt::format("There is no node '{}'", wanted.node));
    return {node, &get_bitmap(*node, wanted.name)};
  }
  for (Node* at = &top;;) {
    NodeBitmap* bitmap = bitmaps_of(*at).find(wanted.name);
    if (bitmap != nullptr) return {at, bitmap};
    const Child* below = at->filtered_child();
    if (below == nullptr) below = at->backing_child();
    if (below == nullptr) {
      throw Error(ENOENT, fmt::format("Bitmap '{}' is not found", wanted.name));
    }
    at = &below->node();
  }
}

void append(std::vector<StatusRun>& runs, StatusRun run) {
  if (!runs.empty() && runs.back().status == run.status)
    runs.back().length += run.length;
  else
    runs.push_back(run);
}

std::uint32_t status_of(MetaContext::Kind kind, const BlockStatus& status) {
  if (kind == MetaContext::Kind::depth) {
    return status.allocated ? static_cast<std::uint32_t>(status.depth) + 1 : 0;
  }
  return (status.data ? 0 : status_hole) | (status.zero ? status_zero : 0);
}

}  // namespace

Task<std::shared_ptr<Export>> Export::open(Graph& graph, ExportOptions options,
                                           std::shared_ptr<Node> node) {
  check_text("name", options.name);
  check_text("description", options.description);
  if (options.writable && node->read_only()) {
    throw Error(
        EROFS, fmt::format("Node '{}' is read-only and cannot be exported writable", node->name()));
  }
  std::shared_ptr<Export> result(new Export(std::move(options)));
  PermissionSet uses = Permission::consistent_read;
  if (result->writable()) uses |= Permission::write;
  const PermissionSet shares = Permissions::all().without(Permission::resize);
  const std::string edge = fmt::format("export '{}'", result->name());
  result->root_ =
      co_await graph.attach(nullptr, edge, EdgeRole::root, node, Permissions{uses, shares});
  std::exception_ptr failure;
  try {
    result->add_contexts(*node);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await result->close();
    std::rethrow_exception(failure);
  }
  co_return result;
}

Export::~Export() { assert(root_ == nullptr && "await close() before"); }

void Export::add_contexts(Node& node) {
  contexts_.push_back({MetaContext::Kind::allocation, 0, std::string(base_allocation)});
  if (options_.allocation_depth) {
    contexts_.push_back({MetaContext::Kind::depth, 1, std::string(allocation_depth)});
  }
  for (const ExportOptions::Bitmap& bitmap : options_.bitmaps) add_bitmap(node, bitmap);
}

void Export::add_bitmap(Node& node, const ExportOptions::Bitmap& wanted) {
  const auto [owner, bitmap] = find_bitmap(node, wanted);
  const std::string& name = bitmap->name;
  if (bitmap->inconsistent) {
    throw Error(EINVAL, fmt::format("Bitmap '{}' is inconsistent and cannot be exported", name));
  }
  if (bitmap->users > 0) {
    throw Error(EBUSY, fmt::format("Bitmap '{}' is in use by a job or an export", name));
  }
  if (!writable() && bitmap->enabled && !owner->read_only()) {
    throw Error(EINVAL, fmt::format("Bitmap '{}' records writes: a read-only export cannot offer "
                                    "it, disable it before",
                                    name));
  }
  const auto id = static_cast<std::uint32_t>(2 + bitmaps_.size());
  std::string context = std::string(dirty_bitmap_prefix) + name;
  if (context.size() > max_string) {
    throw Error(EINVAL, fmt::format("The name of bitmap '{}' is too long for NBD", name));
  }
  bitmaps_.push_back({owner->shared_from_this(), bitmap});
  ++bitmap->users;
  contexts_.push_back({MetaContext::Kind::bitmap, id, std::move(context), bitmap});
}

Task<void> Export::close() {
  std::exception_ptr failure;
  if (writable() && root_ != nullptr) {
    // What filters below hold back must be written as long as our permission to write reaches them.
    Node& node = root_->node();
    try {
      co_await node.drain_begin();
      node.drain_end();
    } catch (...) {
      failure = std::current_exception();
    }
  }
  for (const UsedBitmap& used : bitmaps_) --used.bitmap->users;
  bitmaps_.clear();
  contexts_.clear();
  const std::unique_ptr<Child> root = std::move(root_);
  if (root != nullptr) co_await root->detach();
  if (failure) std::rethrow_exception(failure);
}

std::uint64_t Export::size() const { return align_up(root_->size(), sector); }

std::uint32_t Export::preferred_block_size() const {
  for (const Node* node = &root_->node(); node != nullptr;) {
    if (node->type().name == "compress") {
      const std::uint64_t cluster = node->driver().limits().cluster_size;
      if (std::has_single_bit(cluster) && cluster >= sector && cluster <= max_payload) {
        return static_cast<std::uint32_t>(cluster);
      }
    }
    const Child* below = node->filtered_child();
    node = below != nullptr ? &below->node() : nullptr;
  }
  return default_preferred;
}

Task<void> Export::flush() {
  std::shared_ptr<FlushRound> round = next_flush_;
  if (round != nullptr) {  // has not begun, so it covers all that is written by now
    co_await round->done.wait();
  } else {
    round = next_flush_ = std::make_shared<FlushRound>();
    const std::shared_ptr<FlushRound> before = running_flush_;
    if (before != nullptr) co_await before->done.wait();
    running_flush_ = std::exchange(next_flush_, nullptr);
    try {
      co_await root_->flush();
    } catch (const Error& error) {
      round->failure = error;
    }
    running_flush_ = nullptr;
    round->done.set();
  }
  if (round->failure) throw Error(*round->failure);
}

Task<std::vector<StatusRun>> Export::node_status(MetaContext::Kind kind, GuestRange range,
                                                 std::size_t max_runs, MapMode mode) {
  // Bounds the time that one answer takes: an image can have a stretch for each cluster.
  constexpr unsigned max_steps = 8192;
  std::vector<StatusRun> runs;
  for (unsigned step = 0; step < max_steps && !range.empty(); ++step) {
    Node& node = root_->node();
    const std::uint64_t end = node.size();
    StatusRun run{range.length, kind == MetaContext::Kind::depth ? 0 : status_hole | status_zero};
    if (range.start.bytes() < end) {
      const GuestRange inside{range.start, std::min(range.length, end - range.start.bytes())};
      const BlockStatus status = co_await block_status(node, inside, mode);
      run = {status.length, status_of(kind, status)};
      // The padding belongs to what it follows: no answer ends in the middle of a sector.
      if (status.length == inside.length) run.length = range.length;
    }
    if (runs.size() == max_runs && runs.back().status != run.status) break;
    append(runs, run);
    range = {range.start + run.length, range.length - run.length};
  }
  co_return runs;
}

std::vector<StatusRun> Export::bitmap_status(const NodeBitmap& bitmap, GuestRange range,
                                             std::size_t max_runs) const {
  std::vector<StatusRun> runs;
  while (!range.empty()) {
    StatusRun run{range.length, 0};
    const std::uint64_t end = bitmap.bits.size();
    if (range.start.bytes() < end) {
      const GuestRange inside{range.start, std::min(range.length, end - range.start.bytes())};
      const DirtyBitmap::Stretch stretch = bitmap.bits.stretch(inside);
      run = {stretch.length, stretch.dirty ? status_dirty : 0};
      if (stretch.length == inside.length) run.length = range.length;  // as above
    }
    if (runs.size() == max_runs && runs.back().status != run.status) break;
    append(runs, run);
    range = {range.start + run.length, range.length - run.length};
  }
  return runs;
}

Task<std::vector<StatusRun>> Export::status(const MetaContext& context, GuestRange range,
                                            std::size_t max_runs) {
  if (context.kind == MetaContext::Kind::bitmap) {
    co_return bitmap_status(*context.bitmap, range, max_runs);
  }
  co_return co_await node_status(context.kind, range, max_runs, MapMode::precise);
}

Task<std::vector<StatusRun>> Export::cheap_allocation(GuestRange range, std::size_t max_runs) {
  co_return co_await node_status(MetaContext::Kind::allocation, range, max_runs,
                                 MapMode::allocation_only);
}

}  // namespace vise::nbd
