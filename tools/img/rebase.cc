// vise-img rebase: another backing file, without changing what the disk holds. Where the old and
// the new one differ and the image has nothing of its own, it takes over what the old one has.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "copy/source.h"
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
    shared::level,
    shared::recompress,
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
  bool as_stored =
      true;  // compressed clusters are taken over without decoding where that is possible
  int level = 0;
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
    bool compressed = false;
  };
  Task<Status> status(GuestRange range) const {
    const std::uint64_t size = node_ != nullptr ? node_->size() : 0;
    if (range.start.bytes() >= size) co_return Status{true, range.length};
    const GuestRange inside{range.start, std::min(range.length, size - range.start.bytes())};
    const BlockStatus found = co_await block_status(*node_, inside);
    co_return Status{found.zero, std::min(found.length, inside.length), found.compressed};
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

// Stored lengths are upper bounds, so the shorter one has a whole stream: where the longer one
// begins with it, both decode to the same.
bool same_stream(std::span<const std::byte> a, std::span<const std::byte> b) {
  const std::size_t length = std::min(a.size(), b.size());
  return std::ranges::equal(a.first(length), b.first(length));
}

class Rebase {
 public:
  Rebase(Child& top, Child* old_backing, Child* new_backing, const Request& request, LongWork& work)
      : top_(top),
        old_(old_backing),
        new_(new_backing),
        compress_(request.compress),
        level_(request.level),
        work_(work),
        cluster_(std::max<std::uint64_t>(top.limits().cluster_size, 1)),
        unit_(std::max<std::uint64_t>(cluster_, 65536)) {
    if (old_ != nullptr && request.compress && request.as_stored && request.level == 0) {
      const Limits old = old_->limits();
      as_stored_ = old.cluster_size == cluster_ && old.codec == top.limits().codec;
    }
    if (new_ != nullptr && old_ != nullptr) {
      shared_ = find_in_chain(old_->node(), new_->node().protocol_filename());
    }
  }

  Task<void> run();

 private:
  // What is to be taken over if it differs, or in any case: then without decoding what can be had
  // as it is stored.
  struct Step {
    GuestRange range;
    bool as_stored = false;
  };
  Task<Step> next_step(std::uint64_t from);
  Task<void> compare(GuestRange range);
  Task<void> take_over_stored(GuestRange range);
  Task<std::uint64_t> move_stored(GuestRange range);
  Task<EncodedRun> read_stored(Child* from, GuestRange range, const Node* base);
  Task<bool> holds(GuestRange range);
  Task<void> take_over(GuestRange range, std::span<const std::byte> old);

  Child& top_;
  Child* old_;
  Child* new_;
  bool compress_;
  bool as_stored_ = false;
  int level_;
  LongWork& work_;
  std::uint64_t cluster_;   // bytes, of the image
  std::uint64_t unit_;      // bytes; the clusters of the image, but not tiny ones
  Node* shared_ = nullptr;  // the new backing image, if it is one of the old chain
  std::uint64_t moved_ = 0;
};

// The next stretch that has to be looked at, at most a step; empty at the end of the disk.
Task<Rebase::Step> Rebase::next_step(std::uint64_t from) {
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
    bool above_new = false;  // held by the images between this one and the new backing file
    if (shared_ != nullptr && from < old_node->size()) {
      // What the images above the new backing file do not hold, it holds itself.
      range.length = std::min(range.length, old_node->size() - from);
      const BlockStatus above =
          co_await block_status(*old_node, range, MapMode::allocation_only, shared_);
      range.length = std::min(range.length, above.length);
      above_new = above.allocated;
      if (!above.allocated && from < shared_->size()) {
        from += std::min(range.length, shared_->size() - from);
        continue;
      }
    }
    const Below::Status old_status = co_await old_below.status(range);
    const Below::Status new_status = co_await new_below.status(range);
    // Compressed clusters follow each other one by one; what is above the new backing file, or
    // where that reads as zeros, need not be compared with it.
    const bool as_stored = as_stored_ && old_status.compressed && from % cluster_ == 0 &&
                           (above_new || new_status.zero);
    if (!as_stored) range.length = std::min(range.length, old_status.length);
    if (!as_stored || !above_new) range.length = std::min(range.length, new_status.length);
    if (!old_status.zero || !new_status.zero) {
      // Ends on the grid, so that clusters are taken over as wholes.
      const std::uint64_t end = (from + step) / unit_ * unit_;
      if (end > from) range.length = std::min(range.length, end - from);
      co_return Step{range, as_stored};
    }
    from += range.length;
    work_.progress().set(static_cast<double>(from) / static_cast<double>(size), moved_);
  }
  co_return Step{{GuestOffset(size), 0}};
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

// Parts of the range that are not compressed, or not by the image's codec and in its cluster size,
// are compared as usual.
Task<void> Rebase::take_over_stored(GuestRange range) {
  while (!range.empty()) {
    std::uint64_t done = co_await move_stored(range);
    if (done == 0) {
      done = std::min(unit_ - range.start.bytes() % unit_, range.length);
      co_await compare({range.start, done});
    }
    range = {range.start + done, range.length - done};
  }
}

// Deals with the first clusters of `range` that the old backing image has stored next to each
// other; returns how many bytes that are. Clusters that the new backing image has stored in the
// same way are left to it.
Task<std::uint64_t> Rebase::move_stored(GuestRange range) {
  if (!range.start.is_aligned(cluster_)) co_return 0;
  const EncodedRun run = co_await read_stored(old_, range, shared_);
  const EncodedRun held = co_await read_stored(new_, range, nullptr);
  const std::span<const EncodedExtent> extents(run.extents);
  const auto is_held = [&](std::size_t i) {
    return i < held.extents.size() && same_stream(extents[i].data, held.extents[i].data);
  };
  for (std::size_t i = 0; i < extents.size();) {
    std::size_t end = i + 1;
    while (end < extents.size() && is_held(end) == is_held(i)) ++end;
    if (!is_held(i)) {
      const GuestOffset start = range.start + i * cluster_;
      std::string context = fmt::format("error while writing at byte {}", start.bytes());
      const bool stored =
          co_await top_.write_encoded(start, extents.subspan(i, end - i), WriteFlags{})
              .context(std::move(context));
      if (!stored) co_return i* cluster_;
    }
    i = end;
  }
  const std::uint64_t length = std::min(extents.size() * cluster_, range.length);
  moved_ += length;
  co_return length;
}

Task<EncodedRun> Rebase::read_stored(Child* from, GuestRange range, const Node* base) {
  if (from == nullptr || range.start.bytes() >= from->size()) co_return EncodedRun();
  std::string context = fmt::format("error while reading at byte {}", range.start.bytes());
  EncodedRun run = co_await read_encoded_in_chain(*from, range, cluster_, top_.size(), base)
                       .context(std::move(context));
  const Codec codec = top_.limits().codec;
  const auto unfit = std::find_if(run.extents.begin(), run.extents.end(), [&](const auto& extent) {
    return extent.codec != codec || extent.guest_length != cluster_;
  });
  run.extents.erase(unfit, run.extents.end());
  co_return run;
}

// Whether nothing of the range comes from a backing image.
Task<bool> Rebase::holds(GuestRange range) {
  const Node* const below = backing_node(top_.node());
  while (!range.empty()) {
    const BlockStatus own =
        co_await block_status(top_.node(), range, MapMode::allocation_only, below);
    if (!own.allocated) co_return false;
    range = {range.start + own.length, range.length - own.length};
  }
  co_return true;
}

Task<void> Rebase::take_over(GuestRange range, std::span<const std::byte> old) {
  std::string context = fmt::format("error while writing at byte {}", range.start.bytes());
  if (is_zero(old)) {
    const ZeroFlags flags{.may_unmap = true};
    co_await top_.write_zeroes(range, flags).context(context);
    // Version 2 of qcow2 has no zero clusters: without a backing image it just forgets them.
    const bool kept = co_await holds(range);
    if (kept) co_return;
    co_await top_.write(range.start, ConstIoVec(old)).context(std::move(context));
    co_return;
  }
  WriteFlags flags;
  const bool ends_well = range.end().bytes() % cluster_ == 0 || range.end().bytes() == top_.size();
  // Parts of clusters, beside subclusters the image has already, are written as they are.
  flags.compressed = compress_ && range.start.is_aligned(cluster_) && ends_well;
  flags.level = level_;
  co_await top_.write(range.start, ConstIoVec(old), flags).context(std::move(context));
}

Task<void> Rebase::run() {
  const std::uint64_t size = top_.size();
  for (std::uint64_t position = 0; position < size;) {
    TaskScope scope;
    std::exception_ptr failure;
    try {
      for (unsigned i = 0; i < steps_at_once && position < size; ++i) {
        const Step next = co_await next_step(position);
        position = next.range.end().bytes();
        if (next.range.empty()) break;
        if (next.as_stored) {
          scope.spawn(take_over_stored(next.range));
        } else {
          scope.spawn(compare(next.range));
        }
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
  if (request.compress) codec::check_level(top->limits().codec, request.level);
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
  request.image = writable_image_argument(arguments);
  request.image.open_backing = !request.unsafe;
  request.backing.format = request.backing_format;
  request.backing.force_share = arguments.has('U');  // it is about the backing files alone
  request.backing.cache = cache_argument(arguments, 'T');
  request.compress = arguments.has('c');
  request.as_stored = !arguments.has(key::recompress);
  if (const std::string* text = arguments.last(key::level)) request.level = level_argument(*text);
  if (!request.compress && (request.level != 0 || !request.as_stored)) {
    throw Error(EINVAL, "--level and --recompress need -c (--compress)");
  }
  return run_long_session(program, arguments, LongWork::OnInterrupt::stop, rebase, request);
}

}  // namespace

constexpr Subcommand rebase_command = {
    "rebase", "FILE", "gives an image another backing file and keeps its content", options, run};

}  // namespace vise::tools
