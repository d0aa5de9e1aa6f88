// compress: turns writes into compressed writes. The edge above pads them to whole clusters; this
// filter decides how each cluster is written.
//
// A cluster that the child has nothing of yet is written compressed. One that it has (normal,
// compressed, or zero with space of its own) is written normally in mode new-writes: data that is
// written twice is hot, and stays fast. all-writes compresses it too, where the child can.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "filter/filters.h"
#include "util/driver_options.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"
#include "vise/util/checked.h"
#include "vise/worker_pool.h"

namespace vise {

namespace {

constexpr std::uint64_t scan_here_bytes = 128u << 10;  // larger zero scans run on the workers

enum class Mode { new_writes, all_writes };

/// What becomes of a run of clusters.
enum class Way { compressed, normal };

class CompressDriver final : public Filter {
 public:
  CompressDriver(Node& node, std::unique_ptr<Child> child, Mode mode, int level)
      : Filter(std::move(child)),
        node_(node),
        mode_(mode),
        level_(level),
        cluster_size_(this->child().limits().cluster_size),
        can_zero_(this->child().limits().can_zero) {}

  Limits limits() const override {
    Limits limits = child().limits();
    // Reads may be as small as the child likes; only writes must be whole clusters.
    limits.write_alignment = std::max({limits.request_alignment, limits.write_alignment,
                                       static_cast<std::uint32_t>(cluster_size_)});
    limits.native_fua = false;  // one flush behind all the runs of a write
    return limits;
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    // The last cluster of the disk may be a partial one; the edge has padded it (see Limits).
    const std::uint64_t length = std::min(data.size(), size() - offset.bytes());
    if (flags.level == 0) flags.level = level_;
    return write_clusters(offset, data.first(length), flags);
  }

 private:
  struct Run {
    Way way;
    std::uint64_t length;  // bytes
  };

  Task<void> write_clusters(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    const std::vector<char> zeros = co_await find_zero_clusters(data);
    for (std::size_t first = 0; first < zeros.size();) {
      std::size_t end = first + 1;
      while (end < zeros.size() && zeros[end] == zeros[first]) ++end;
      const std::uint64_t start = first * cluster_size_;
      const std::uint64_t length = std::min(end * cluster_size_, data.size()) - start;
      const GuestOffset at = offset + start;
      if (zeros[first] != 0) {
        co_await child().write_zeroes(GuestRange{at, length}, ZeroFlags{.may_unmap = true});
      } else {
        co_await write_content(at, data.slice(start, length), flags);
      }
      first = end;
    }
  }

  // One entry per cluster; all 0 where the child could not do anything with the answer.
  Task<std::vector<char>> find_zero_clusters(ConstIoVec data) {
    std::vector<char> zeros(divide_up(data.size(), cluster_size_), 0);
    if (!can_zero_) co_return zeros;
    std::function<void(std::size_t)> scan([&](std::size_t i) {
      const std::uint64_t start = i * cluster_size_;
      zeros[i] = is_zero(data.slice(start, std::min(cluster_size_, data.size() - start))) ? 1 : 0;
    });
    if (data.size() <= scan_here_bytes) {
      for (std::size_t i = 0; i < zeros.size(); ++i) scan(i);
    } else {
      co_await node_.graph().context().workers().for_each(zeros.size(), std::move(scan));
    }
    co_return zeros;
  }

  Task<void> write_content(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    if (mode_ == Mode::all_writes) {
      const bool stored = co_await write_compressed(offset, data, flags);
      if (stored) co_return;
    }
    while (!data.empty()) {
      const Run run = co_await next_run(GuestRange{offset, data.size()});
      const ConstIoVec part = data.first(run.length);
      if (run.way == Way::compressed) {
        co_await write_compressed_or_normal(offset, part, flags);
      } else {
        co_await write_normal(offset, part, flags);
      }
      offset += run.length;
      data = data.slice(run.length);
    }
  }

  // What to do with the first clusters of `range`, as many as are in the same state.
  Task<Run> next_run(GuestRange range) {
    const BlockStatus status = co_await status_of(range);
    const std::uint64_t whole =
        status.length == range.length ? range.length : align_down(status.length, cluster_size_);
    if (whole > 0) co_return Run{is_there(status) ? Way::normal : Way::compressed, whole};

    // The state changes within the first cluster: if a part of it is there, it is there.
    const std::uint64_t cluster = std::min(cluster_size_, range.length);
    bool there = false;
    for (std::uint64_t at = 0; at < cluster && !there;) {
      const BlockStatus part = co_await status_of(GuestRange{range.start + at, cluster - at});
      there = is_there(part);
      at += part.length;
    }
    co_return Run{there ? Way::normal : Way::compressed, cluster};
  }

  // Of the image below alone: its backing image is not what is written to.
  Task<BlockStatus> status_of(GuestRange range) {
    const Node* image = &child().node();
    while (const Child* below = image->filtered_child()) image = &below->node();
    const Child* backing = image->backing_child();
    const Node* base = backing != nullptr ? &backing->node() : nullptr;
    return block_status(child().node(), range, MapMode::allocation_only, base);
  }

  // A zero cluster without space of its own has nothing that a compressed one would replace.
  static bool is_there(const BlockStatus& status) {
    return status.allocated && (status.data || status.host.has_value());
  }

  // False, with nothing changed, if the child cannot replace what is there.
  Task<bool> write_compressed(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    flags.compressed = true;
    try {
      co_await child().write(offset, data, flags);
    } catch (const Error& error) {
      if (error.code() != ENOTSUP) throw;
      co_return false;
    }
    co_return true;
  }

  // One cluster that cannot be replaced must not keep its neighbours from being compressed.
  Task<void> write_compressed_or_normal(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    const bool all_stored = co_await write_compressed(offset, data, flags);
    if (all_stored) co_return;
    if (data.size() <= cluster_size_) {
      co_await write_normal(offset, data, flags);
      co_return;
    }
    while (!data.empty()) {
      const ConstIoVec cluster = data.first(std::min(data.size(), cluster_size_));
      const bool stored = co_await write_compressed(offset, cluster, flags);
      if (!stored) co_await write_normal(offset, cluster, flags);
      offset += cluster.size();
      data = data.slice(cluster.size());
    }
  }

  Task<void> write_normal(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
    flags.compressed = false;
    return child().write(offset, data, flags);
  }

  Node& node_;
  const Mode mode_;
  const int level_;
  const std::uint64_t cluster_size_;  // of the child
  const bool can_zero_;
};

void check_child(const Child& child) {
  const Limits limits = child.limits();
  if (limits.can_compress && limits.cluster_size > 0) return;
  throw Error(ENOTSUP,
              fmt::format("Node '{}' (driver '{}') cannot store compressed data, which the "
                          "compress filter needs",
                          child.node().name(), child.node().type().name));
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsCompress>(context);
  const bool all_writes = options.mode == qapi::CompressMode::all_writes;
  const int level = options.level.value_or(codec::default_level);
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  check_child(*child);
  codec::check_level(child->limits().codec, level);
  co_return std::make_unique<CompressDriver>(
      context.node(), std::move(child), all_writes ? Mode::all_writes : Mode::new_writes, level);
}

}  // namespace

const DriverType compress_driver = {.name = "compress", .kind = DriverKind::filter, .open = open};

}  // namespace vise
