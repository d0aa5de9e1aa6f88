// compress: turns writes into compressed writes, and decides how each cluster is written.
//
// A cluster that the child has nothing of yet is written compressed. One that it has (normal,
// compressed, or zero with space of its own) is written normally in mode new-writes: data that is
// written twice is hot, and stays fast. all-writes compresses it too, where the child can.
//
// Only whole clusters can be compressed. Parts wait in the write buffer until their cluster is
// complete, a flush comes, or the buffer needs room; then what is missing is read. Everybody who
// looks sees the buffer first. With write-buffer-size=0 the edge above pads to whole clusters by
// read-modify-write instead.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "filter/filters.h"
#include "filter/write_buffer.h"
#include "util/driver_options.h"
#include "util/request_order.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/filter.h"
#include "vise/graph.h"
#include "vise/util/checked.h"
#include "vise/worker_pool.h"

namespace vise {

namespace {

constexpr std::uint64_t scan_here_bytes = 128u << 10;  // larger zero scans run on the workers
constexpr std::uint64_t default_buffer_size = 16u << 20;

struct Settings {
  bool all_writes = false;
  int level = codec::default_level;
  std::uint64_t buffer_size = default_buffer_size;  // bytes, 0: off
};

class CompressDriver final : public Filter {
 public:
  CompressDriver(Node& node, std::unique_ptr<Child> child, const Settings& settings)
      : Filter(std::move(child)),
        node_(node),
        settings_(settings),
        cluster_size_(this->child().limits().cluster_size),
        can_zero_(this->child().limits().can_zero) {}

  Limits limits() const override {
    Limits limits = child().limits();
    if (settings_.buffer_size == 0) {
      // Reads may be as small as the child likes; only writes must be whole clusters.
      limits.write_alignment = std::max({limits.request_alignment, limits.write_alignment,
                                         static_cast<std::uint32_t>(cluster_size_)});
    }
    limits.zero_alignment = std::max(limits.zero_alignment, cluster_size_);
    limits.discard_alignment = std::max(limits.discard_alignment, cluster_size_);
    limits.native_fua = true;  // only what the write touched is written out for it
    return limits;
  }

  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> flush() override;
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override;
  Task<Extent> map(GuestRange range, MapMode mode) override;
  Task<EncodedRun> read_encoded(GuestRange range) override;
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override;
  Task<void> drain() override { return write_out_all(); }
  Task<void> reopen(bool read_only) override;
  std::span<const std::string_view> changeable_options() const override {
    static constexpr std::string_view names[] = {"mode", "level", "write-buffer-size"};
    return names;
  }
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;
  Task<void> close() override;

 private:
  std::uint64_t cluster_of(GuestOffset offset) const { return offset.bytes() / cluster_size_; }
  GuestOffset start_of(std::uint64_t cluster) const { return GuestOffset(cluster * cluster_size_); }
  std::uint64_t length_of(std::uint64_t cluster) const {
    return std::min(cluster_size_, size() - cluster * cluster_size_);
  }
  RangeLocks::Guard enqueue(GuestRange range) {
    return locks_.enqueue(cluster_of(range.start), cluster_of(range.end() - 1));
  }
  std::vector<WriteBuffer::Entry> buffered(GuestRange range) const {
    return buffer_.in_range(cluster_of(range.start), cluster_of(range.end() - 1));
  }
  void drop(GuestRange range);

  // Parts of clusters.
  Task<void> write_part(GuestOffset offset, ConstIoVec data, WriteFlags flags);
  Task<void> write_out(WriteBuffer::Entry entry);
  Task<void> write_out_locked(BufferedCluster& cluster);
  Task<void> write_out_range(GuestRange range);
  Task<void> write_out_all();
  Task<void> make_room();
  Task<void> write_behind(WriteBuffer::Entry entry);

  // Whole clusters.
  struct Run {
    enum class Way { compressed, normal, zero } way;
    GuestRange range;
  };
  Task<void> write_clusters(GuestOffset offset, ConstIoVec data, WriteFlags flags);
  Task<std::vector<Run>> plan(GuestOffset offset, ConstIoVec data);
  bool may_zero() const;
  Task<std::vector<char>> find_zero_clusters(ConstIoVec data);
  Task<Run> next_run(GuestRange range);
  Task<BlockStatus> status_of(GuestRange range);
  Task<bool> is_there(std::uint64_t cluster);
  Task<void> write_run(Run run, ConstIoVec data, WriteFlags flags);
  Task<void> write_replaceable(GuestOffset offset, ConstIoVec data, WriteFlags flags);
  Task<bool> try_compressed(GuestOffset offset, ConstIoVec data, WriteFlags flags);

  Node& node_;
  Settings settings_;
  const std::uint64_t cluster_size_;  // of the child
  const bool can_zero_;

  RangeLocks locks_;     // on clusters: whoever changes them, or what the buffer holds of them
  TicketQueue tickets_;  // the child sees whole-cluster writes in the order in which they came
  WriteBuffer buffer_;
  WaitQueue written_out_;  // whenever a cluster has been written out, or could not be
  TaskScope behind_;       // complete clusters on their way down that nobody waits for
};

// A zero cluster without space of its own has nothing that a compressed one would replace.
bool holds_something(const BlockStatus& status) {
  return status.allocated && (status.data || status.host.has_value());
}

// --- requests -----------------------------------------------------------------------------------

// The entries are held from before the child is read: should they reach the child meanwhile, what
// they held is what this read must see at least, and later writes may or may not be seen.
Task<void> CompressDriver::read(GuestOffset offset, IoVec data) {
  std::vector<WriteBuffer::Entry> held;
  if (!buffer_.empty()) held = buffered({offset, data.size()});
  co_await Filter::read(offset, data);
  for (const WriteBuffer::Entry& entry : held) {
    const GuestRange cluster{start_of(entry->number()), entry->length()};
    const GuestRange part = cluster.intersection({offset, data.size()});
    entry->overlay(part.start - cluster.start, data.slice(part.start - offset, part.length));
  }
}

Task<void> CompressDriver::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  // Without the buffer the edge has padded the last cluster of the disk (see Limits).
  data = data.first(std::min(data.size(), size() - offset.bytes()));
  if (flags.level == 0) flags.level = settings_.level;
  const bool fua = std::exchange(flags.fua, false);
  const GuestRange range{offset, data.size()};
  {
    RangeLocks::Guard lock = enqueue(range);
    if (!lock.is_held()) co_await lock.held();
    const GuestOffset middle = range.start.align_up(cluster_size_);
    GuestOffset tail = range.end().align_down(cluster_size_);
    if (range.end().bytes() == size()) tail = range.end();
    if (middle > tail) {
      co_await write_part(offset, data, flags);  // inside one cluster
    } else {
      if (middle > offset) co_await write_part(offset, data.first(middle - offset), flags);
      if (tail > middle) {
        co_await write_clusters(middle, data.slice(middle - offset, tail - middle), flags);
        drop({middle, tail - middle});
      }
      if (range.end() > tail) co_await write_part(tail, data.slice(tail - offset), flags);
    }
  }
  if (fua) {
    co_await write_out_range(range);
    co_await child().flush();
  }
  co_await make_room();
}

Task<void> CompressDriver::write_zeroes(GuestRange range, ZeroFlags flags) {
  RangeLocks::Guard lock = enqueue(range);
  co_await lock.held();
  co_await Filter::write_zeroes(range, flags);
  drop(range);
}

Task<void> CompressDriver::discard(GuestRange range) {
  RangeLocks::Guard lock = enqueue(range);
  co_await lock.held();
  co_await Filter::discard(range);
  // The child may ignore the hint, and what it shows then must not be older than what is held.
  for (const WriteBuffer::Entry& entry : buffered(range)) {
    const GuestRange cluster{start_of(entry->number()), entry->length()};
    const BlockStatus status =
        co_await block_status(child().node(), cluster, MapMode::allocation_only);
    if (status.zero && status.length >= cluster.length) buffer_.drop(entry->number());
  }
}

Task<void> CompressDriver::flush() {
  co_await write_out_all();
  co_await child().flush();
}

Task<void> CompressDriver::truncate(std::uint64_t size, TruncateOptions options) {
  co_await write_out_all();
  co_await Filter::truncate(size, options);
}

// Those who ask where data lies get an answer that the child gives, so it must have the data.
Task<Extent> CompressDriver::map(GuestRange range, MapMode mode) {
  co_await write_out_range(range);
  co_return co_await Filter::map(range, mode);
}

Task<EncodedRun> CompressDriver::read_encoded(GuestRange range) {
  co_await write_out_range(range);
  co_return co_await Filter::read_encoded(range);
}

Task<bool> CompressDriver::write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                         WriteFlags flags) {
  const GuestRange range{offset, std::min(extents.size() * cluster_size_, size() - offset.bytes())};
  RangeLocks::Guard lock = enqueue(range);
  if (!lock.is_held()) co_await lock.held();
  const bool stored = co_await Filter::write_encoded(offset, extents, flags);
  if (stored) drop(range);
  co_return stored;
}

Task<void> CompressDriver::reopen(bool read_only) {
  if (read_only) co_await write_out_all();
}

Task<void> CompressDriver::close() {
  std::exception_ptr failure;
  try {
    co_await write_out_all();
  } catch (...) {
    failure = std::current_exception();
  }
  co_await behind_.join();
  co_await Filter::close();
  if (failure) std::rethrow_exception(failure);
}

// --- parts of clusters --------------------------------------------------------------------------

void CompressDriver::drop(GuestRange range) {
  if (buffer_.empty()) return;
  for (const auto& entry : buffered(range)) buffer_.drop(entry->number());
}

// Inside one cluster, whose lock the caller holds.
Task<void> CompressDriver::write_part(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const std::uint64_t cluster = cluster_of(offset);
  if (!buffer_.find(cluster) && !settings_.all_writes) {
    const bool there = co_await is_there(cluster);
    if (there) {
      co_await child().write(offset, data, flags);
      co_return;
    }
  }
  const WriteBuffer::Entry entry = buffer_.touch(cluster, length_of(cluster));
  entry->store(offset - start_of(cluster), data);
  // Nobody waits for a complete one: it is stable after the next flush, like every write.
  if (entry->is_complete() && !entry->writing) behind_.spawn(write_behind(entry));
}

Task<void> CompressDriver::write_behind(WriteBuffer::Entry entry) {
  try {
    co_await write_out(entry);
  } catch (const Error&) {
    // It stays in the buffer; the flush that tries again tells the error.
  }
}

Task<void> CompressDriver::write_out(WriteBuffer::Entry entry) {
  RangeLocks::Guard lock = locks_.enqueue(entry->number(), entry->number());
  co_await lock.held();
  // Somebody else may have written or dropped it while we waited.
  if (buffer_.find(entry->number()) != entry) co_return;
  entry->writing = true;
  std::exception_ptr failure;
  try {
    co_await write_out_locked(*entry);
  } catch (...) {
    failure = std::current_exception();
  }
  entry->writing = false;
  written_out_.wake_all();
  if (failure) std::rethrow_exception(failure);
  buffer_.drop(entry->number());
}

// The lock keeps writers away, so the content stays as it is until this is done.
Task<void> CompressDriver::write_out_locked(BufferedCluster& cluster) {
  const GuestOffset start = start_of(cluster.number());
  for (const auto& [offset, length] : cluster.gaps()) {
    Buffer missing(length);
    co_await child().read(start + offset, IoVec(missing.span()));
    cluster.store(offset, ConstIoVec(missing.span()));
  }
  WriteFlags flags;
  flags.level = settings_.level;
  co_await write_clusters(start, ConstIoVec(cluster.data()), flags);
}

Task<void> CompressDriver::write_out_range(GuestRange range) {
  if (buffer_.empty()) co_return;
  TaskScope scope;
  for (const auto& entry : buffered(range)) scope.spawn(write_out(entry));
  co_await scope.join();
}

Task<void> CompressDriver::write_out_all() {
  if (size() > 0) co_await write_out_range({GuestOffset(0), size()});
}

Task<void> CompressDriver::make_room() {
  while (buffer_.bytes() > settings_.buffer_size) {
    const auto oldest = buffer_.oldest(buffer_.bytes() - settings_.buffer_size);
    if (oldest.empty()) {
      co_await written_out_.wait();  // all of it is on its way
      continue;
    }
    TaskScope scope;
    for (const auto& entry : oldest) scope.spawn(write_out(entry));
    co_await scope.join();
  }
}

// --- whole clusters -----------------------------------------------------------------------------

// All requests to the child are started in one go and in the order in which the writes came, so
// that the layout below does not depend on how long scanning took.
Task<void> CompressDriver::write_clusters(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  TicketQueue::Ticket ticket = tickets_.take();
  const std::vector<Run> runs = co_await plan(offset, data);
  if (!ticket.has_turn()) co_await ticket.turn();
  TaskScope scope;
  for (const Run& run : runs) {
    scope.spawn(write_run(run, data.slice(run.range.start - offset, run.range.length), flags));
  }
  ticket.pass();
  co_await scope.join();
}

Task<std::vector<CompressDriver::Run>> CompressDriver::plan(GuestOffset offset, ConstIoVec data) {
  const std::vector<char> zeros = co_await find_zero_clusters(data);
  std::vector<Run> runs;
  for (std::size_t first = 0; first < zeros.size();) {
    std::size_t end = first + 1;
    while (end < zeros.size() && zeros[end] == zeros[first]) ++end;
    const std::uint64_t start = first * cluster_size_;
    GuestRange rest{offset + start, std::min(end * cluster_size_, data.size()) - start};
    if (zeros[first] != 0) {
      runs.push_back({Run::Way::zero, rest});
    } else if (settings_.all_writes) {
      runs.push_back({Run::Way::compressed, rest});
    } else {
      while (!rest.empty()) {
        const Run run = co_await next_run(rest);
        runs.push_back(run);
        rest = {run.range.end(), rest.length - run.range.length};
      }
    }
    first = end;
  }
  co_return runs;
}

// A writer of what is unchanged, like a stream job, brings no right to write zeros. Its zeros go
// down as data to be compressed then, unless somebody else who writes to this node has brought that
// right.
bool CompressDriver::may_zero() const {
  return can_zero_ && child().permissions().uses.has(Permission::write);
}

// One entry per cluster; all 0 where the child could not do anything with the answer.
Task<std::vector<char>> CompressDriver::find_zero_clusters(ConstIoVec data) {
  std::vector<char> zeros(divide_up(data.size(), cluster_size_), 0);
  if (!may_zero()) co_return zeros;
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

// What to do with the first clusters of `range`, as many as are in the same state.
Task<CompressDriver::Run> CompressDriver::next_run(GuestRange range) {
  const BlockStatus status = co_await status_of(range);
  const std::uint64_t whole =
      status.length >= range.length ? range.length : align_down(status.length, cluster_size_);
  if (whole > 0) {
    const auto way = holds_something(status) ? Run::Way::normal : Run::Way::compressed;
    co_return Run{way, {range.start, whole}};
  }
  const bool there = co_await is_there(cluster_of(range.start));
  const std::uint64_t length = std::min(cluster_size_, range.length);
  co_return Run{there ? Run::Way::normal : Run::Way::compressed, {range.start, length}};
}

// If a part of a cluster is there, it is there.
Task<bool> CompressDriver::is_there(std::uint64_t cluster) {
  const std::uint64_t length = length_of(cluster);
  for (std::uint64_t at = 0; at < length;) {
    const BlockStatus part = co_await status_of({start_of(cluster) + at, length - at});
    if (holds_something(part)) co_return true;
    at += part.length;
  }
  co_return false;
}

// Of the image below alone: its backing image is not what is written to.
Task<BlockStatus> CompressDriver::status_of(GuestRange range) {
  const Node* image = &child().node();
  while (const Child* below = image->filtered_child()) image = &below->node();
  const Child* backing = image->backing_child();
  const Node* base = backing != nullptr ? &backing->node() : nullptr;
  return block_status(child().node(), range, MapMode::allocation_only, base);
}

Task<void> CompressDriver::write_run(Run run, ConstIoVec data, WriteFlags flags) {
  if (run.way == Run::Way::zero) {
    co_await child().write_zeroes(run.range, ZeroFlags{.may_unmap = true});
    co_return;
  }
  if (run.way == Run::Way::compressed) {
    const bool stored = co_await try_compressed(run.range.start, data, flags);
    if (stored) co_return;
    if (data.size() > cluster_size_) {
      co_await write_replaceable(run.range.start, data, flags);
      co_return;
    }
  }
  co_await child().write(run.range.start, data, flags);
}

// One cluster that cannot be replaced must not keep its neighbours from being compressed.
Task<void> CompressDriver::write_replaceable(GuestOffset offset, ConstIoVec data,
                                             WriteFlags flags) {
  while (!data.empty()) {
    Run run = co_await next_run({offset, data.size()});
    bool stored = false;
    if (run.way == Run::Way::compressed) {
      stored = co_await try_compressed(offset, data.first(run.range.length), flags);
      if (!stored && run.range.length > cluster_size_) {
        // Not even where nothing is known to be: one by one.
        run.range.length = cluster_size_;
        stored = co_await try_compressed(offset, data.first(cluster_size_), flags);
      }
    }
    if (!stored) co_await child().write(offset, data.first(run.range.length), flags);
    offset += run.range.length;
    data = data.slice(run.range.length);
  }
}

// False, with nothing changed, if the child cannot replace what is there.
Task<bool> CompressDriver::try_compressed(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  flags.compressed = true;
  try {
    co_await child().write(offset, data, flags);
  } catch (const Error& error) {
    if (error.code() != ENOTSUP) throw;
    co_return false;
  }
  co_return true;
}

// --- opening ------------------------------------------------------------------------------------

void check_child(const Child& child) {
  const Limits limits = child.limits();
  if (limits.can_compress && limits.cluster_size > 0) return;
  throw Error(ENOTSUP,
              fmt::format("Node '{}' (driver '{}') cannot store compressed data, which the "
                          "compress filter needs",
                          child.node().name(), child.node().type().name));
}

Settings read_settings(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsCompress>(context);
  Settings settings;
  settings.all_writes = options.mode == qapi::CompressMode::all_writes;
  settings.level = options.level.value_or(codec::default_level);
  settings.buffer_size = options.write_buffer_size.value_or(default_buffer_size);
  return settings;
}

// The buffer is empty: the node is drained.
Task<std::function<void()>> CompressDriver::prepare_reopen(OpenContext& context) {
  const Settings settings = read_settings(context);
  check_child(child());
  const Limits limits = child().limits();
  if (limits.cluster_size != cluster_size_ || limits.can_zero != can_zero_) {
    throw Error(EINVAL, fmt::format("Node '{}' has clusters of {} bytes, but the compress filter "
                                    "was opened above some of {} bytes",
                                    child().node().name(), limits.cluster_size, cluster_size_));
  }
  codec::check_level(limits.codec, settings.level);
  co_return [this, settings] { settings_ = settings; };
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const Settings settings = read_settings(context);
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  check_child(*child);
  codec::check_level(child->limits().codec, settings.level);
  co_return std::make_unique<CompressDriver>(context.node(), std::move(child), settings);
}

}  // namespace

const DriverType compress_driver = {.name = "compress", .kind = DriverKind::filter, .open = open};

}  // namespace vise
