// vise-img rebase: another backing file, without changing what the disk holds. Where the old and
// the new one differ and the image has nothing of its own, it takes over what the old one has.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/chain.h"
#include "tools/img/command.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"
#include "vise/sync.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'b', "backing", "FILE", "the new backing file; '' for none"},
    {'F', "backing-format", "FORMAT", "its format"},
    {'u', "backing-unsafe", nullptr, "change only the name: the content must be the same"},
    {'c', "compress", nullptr, "compress what the image takes over"},
    {'t', "cache", "CACHE", "cache mode of the image; writeback if not given"},
    {'T', "backing-cache", "CACHE", "cache mode of the new backing file; writeback if not given"},
    shared::format,
    shared::image_opts,
    {'U', "force-share", nullptr, "others may use the backing files meanwhile"},
    shared::progress,
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  ImageArguments backing;  // without file name: none
  std::string backing_name;
  std::string backing_format;
  bool unsafe = false;
  bool compress = false;
};

constexpr std::uint64_t step = 2 << 20;  // bytes compared at a time
constexpr unsigned steps_at_once = 4;
constexpr std::uint64_t longest_look = 1 << 30;  // bytes asked for at a time

// What an image shows below another: its content, and zeros behind its end.
class Below {
 public:
  explicit Below(Node* node) : node_(node) {}

  /// Zero, if it reads as zeros from there on, and for how long either holds.
  struct Status {
    bool zero = true;
    std::uint64_t length = 0;
  };
  Task<Status> status(GuestRange range) const {
    const std::uint64_t size = node_ != nullptr ? node_->size() : 0;
    if (range.start.bytes() >= size) co_return Status{true, range.length};
    const GuestRange inside{range.start, std::min(range.length, size - range.start.bytes())};
    const BlockStatus found = co_await block_status(*node_, inside);
    co_return Status{found.zero, std::min(found.length, inside.length)};
  }

  /// Reads through `child`, an edge to the node (null without one).
  static Task<void> read(Child* child, GuestOffset offset, std::span<std::byte> data) {
    const std::uint64_t size = child != nullptr ? child->size() : 0;
    const std::uint64_t there = offset.bytes() < size ? size - offset.bytes() : 0;
    const std::size_t length = std::min<std::uint64_t>(there, data.size());
    if (length > 0) {
      co_await child->read(offset, IoVec(data.first(length)))
          .context(fmt::format("error while reading at byte {}", offset.bytes()));
    }
    std::ranges::fill(data.subspan(length), std::byte{0});
  }

 private:
  Node* node_;
};

class Rebase {
 public:
  Rebase(Child& top, Child* old_backing, Child* new_backing, const Request& request, LongWork& work)
      : top_(top),
        old_(old_backing),
        new_(new_backing),
        compress_(request.compress),
        work_(work),
        unit_(std::max<std::uint64_t>(top.limits().cluster_size, 65536)) {
    if (new_ != nullptr && old_ != nullptr) {
      shared_ = find_in_chain(old_->node(), new_->node().protocol_filename());
    }
  }

  Task<void> run();

 private:
  Task<GuestRange> next_difference(std::uint64_t from);
  Task<void> compare(GuestRange range);
  Task<void> take_over(GuestRange range, std::span<const std::byte> old);

  Child& top_;
  Child* old_;
  Child* new_;
  bool compress_;
  LongWork& work_;
  std::uint64_t unit_;      // bytes; the clusters of the image, but not tiny ones
  Node* shared_ = nullptr;  // the new backing image, if it is one of the old chain
  std::uint64_t moved_ = 0;
};

// The next stretch that has to be compared, at most a step; empty at the end of the disk.
Task<GuestRange> Rebase::next_difference(std::uint64_t from) {
  const std::uint64_t size = top_.size();
  Node* const old_node = old_ != nullptr ? &old_->node() : nullptr;
  const Below old_below(old_node);
  const Below new_below(new_ != nullptr ? &new_->node() : nullptr);
  while (from < size) {
    work_.checkpoint();
    GuestRange range{GuestOffset(from), std::min(longest_look, size - from)};
    const BlockStatus own =
        co_await block_status(top_.node(), range, MapMode::allocation_only, old_node);
    range.length = std::min(range.length, own.length);
    if (own.allocated) {
      from += range.length;
      continue;
    }
    if (shared_ != nullptr && from < old_node->size()) {
      // What the images above the new backing file do not hold, it holds itself.
      range.length = std::min(range.length, old_node->size() - from);
      const BlockStatus above =
          co_await block_status(*old_node, range, MapMode::allocation_only, shared_);
      range.length = std::min(range.length, above.length);
      if (!above.allocated && from < shared_->size()) {
        from += std::min(range.length, shared_->size() - from);
        continue;
      }
    }
    const Below::Status old_status = co_await old_below.status(range);
    const Below::Status new_status = co_await new_below.status(range);
    range.length = std::min({range.length, old_status.length, new_status.length});
    if (!old_status.zero || !new_status.zero) {
      // Ends on the grid, so that clusters are taken over as wholes.
      const std::uint64_t end = (from + step) / unit_ * unit_;
      if (end > from) range.length = std::min(range.length, end - from);
      co_return range;
    }
    from += range.length;
    work_.progress().set(static_cast<double>(from) / static_cast<double>(size), moved_);
  }
  co_return GuestRange{GuestOffset(size), 0};
}

Task<void> Rebase::compare(GuestRange range) {
  Buffer old_data(range.length);
  Buffer new_data(range.length);
  co_await Below::read(old_, range.start, old_data.span());
  co_await Below::read(new_, range.start, new_data.span());
  moved_ += range.length;
  // Runs of units that differ; units lie on the grid of the disk.
  const auto next_unit = [&](std::uint64_t at) {
    const std::uint64_t offset = range.start.bytes() + at;
    return std::min(range.length, at + unit_ - offset % unit_);
  };
  for (std::uint64_t at = 0; at < range.length;) {
    std::uint64_t end = at;
    while (end < range.length) {
      const std::uint64_t next = next_unit(end);
      if (std::memcmp(old_data.data() + end, new_data.data() + end, next - end) == 0) break;
      end = next;
    }
    if (end == at) {
      at = next_unit(at);
      continue;
    }
    co_await take_over({range.start + at, end - at}, old_data.span().subspan(at, end - at));
    at = end;
  }
}

Task<void> Rebase::take_over(GuestRange range, std::span<const std::byte> old) {
  std::string context = fmt::format("error while writing at byte {}", range.start.bytes());
  if (is_zero(old)) {
    const ZeroFlags flags{.may_unmap = true};
    co_await top_.write_zeroes(range, flags).context(std::move(context));
    co_return;
  }
  WriteFlags flags;
  const std::uint64_t cluster = std::max<std::uint64_t>(1, top_.limits().cluster_size);
  const bool ends_well = range.end().bytes() % cluster == 0 || range.end().bytes() == top_.size();
  // Parts of clusters, beside subclusters the image has already, are written as they are.
  flags.compressed = compress_ && range.start.is_aligned(cluster) && ends_well;
  co_await top_.write(range.start, ConstIoVec(old), flags).context(std::move(context));
}

Task<void> Rebase::run() {
  const std::uint64_t size = top_.size();
  for (std::uint64_t position = 0; position < size;) {
    TaskScope scope;
    std::exception_ptr failure;
    try {
      for (unsigned i = 0; i < steps_at_once && position < size; ++i) {
        const GuestRange range = co_await next_difference(position);
        position = range.end().bytes();
        if (!range.empty()) scope.spawn(compare(range));
      }
    } catch (...) {
      failure = std::current_exception();
    }
    co_await scope.join();
    if (failure) std::rethrow_exception(failure);
    work_.progress().set(static_cast<double>(position) / static_cast<double>(size), moved_);
  }
}

// An edge of our own to the image's old backing image, to read through.
Task<std::unique_ptr<Child>> attach_reader(ImageSession& session, Node& node) {
  const Permissions wanted{Permission::consistent_read, Permissions::all()};
  co_return co_await session.graph().attach(nullptr, std::string("old backing"), EdgeRole::root,
                                            node.shared_from_this(), wanted);
}

Task<void> take_over_differences(ImageSession& session, Child& top, const Request& request,
                                 LongWork& work) {
  Child* new_backing = nullptr;
  if (!request.backing_name.empty()) {
    ImageArguments image = request.backing;
    image.filename = backing_path(top.node(), request.backing_name);
    if (find_in_chain(top.node(), image.filename) == &top.node()) {
      throw Error(EINVAL, "An image cannot be its own backing file");
    }
    new_backing =
        co_await session.open(std::move(image)).context("Could not open the new backing file");
  }
  std::unique_ptr<Child> old_backing;
  if (Node* node = backing_node(top.node())) {
    std::unique_ptr<Child> edge = co_await attach_reader(session, *node);
    old_backing = std::move(edge);
  }
  std::exception_ptr failure;
  try {
    Rebase rebase(top, old_backing.get(), new_backing, request, work);
    co_await rebase.run();
    co_await top.flush();
  } catch (...) {
    failure = std::current_exception();
  }
  if (old_backing) co_await old_backing->detach();
  if (failure) std::rethrow_exception(failure);
}

Task<int> rebase(ImageSession& session, const Request& request, LongWork& work) {
  Child* top = co_await session.open(request.image);
  Node& node = top->node();
  auto* driver = find_interface<HasBackingFile>(node);
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no backing files", node.type().name));
  }
  if (request.compress && !top->limits().can_compress) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no compression", node.type().name));
  }
  Progress& progress = work.progress();
  progress.start();
  if (!request.unsafe) co_await take_over_differences(session, *top, request, work);
  const auto change = [&] {
    return driver->change_backing_file(request.backing_name, request.backing_format);
  };
  co_await while_drained(node, change)
      .context(fmt::format("Could not change the backing file to '{}'", request.backing_name));
  co_await session.close(top);
  progress.complete();
  progress.end();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.unsafe = arguments.has('u');
  if (!request.unsafe && !arguments.has('b')) {
    throw UsageError("Use -b (--backing) or -u (--backing-unsafe)");
  }
  request.backing_name = arguments.value_or('b', "");
  request.backing_format = arguments.value_or('F', "");
  if (!request.backing_name.empty() && !arguments.has('F')) {
    throw Error(EINVAL, "A backing file needs its format (-F)");
  }
  request.image = image_argument(arguments);
  request.image.force_share = false;  // -U is about the backing files
  request.image.read_only = false;
  request.image.discard_unmap = true;
  request.image.open_backing = !request.unsafe;
  request.image.cache = cache_argument(arguments, 't');
  request.backing.format = request.backing_format;
  request.backing.force_share = arguments.has('U');
  request.backing.cache = cache_argument(arguments, 'T');
  request.compress = arguments.has('c');
  return run_long_session(program, arguments, LongWork::OnInterrupt::stop, rebase, request);
}

}  // namespace

constexpr Subcommand rebase_command = {
    "rebase", "FILE", "gives an image another backing file and keeps its content", options, run};

}  // namespace vise::tools
