// An in-memory protocol for tests: keeps what is written, checks that every request obeys its
// limits, and can be told to fail, to wait, and to hold compressed clusters.
#pragma once

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/sync.h"
#include "vise/util/checked.h"

namespace vise::test {

/// What a test sees and steers of one memory node. Outlives the node.
struct MemoryDisk {
  std::vector<std::byte> bytes;
  Limits limits;
  /// Counts of requests that reached the driver.
  std::size_t reads = 0, writes = 0, zeroes = 0, discards = 0, flushes = 0;
  std::size_t compressed_writes = 0, fua_writes = 0;
  std::size_t in_flight = 0;
  bool yields = false;  // every request lets others run in the middle
  bool opened = false, closed = false;
  bool read_only = false;  // as told by reopen()
  bool cannot_replace_compressed = false;
  bool ignores_discards = false;
  std::function<void(Permissions)> on_permissions;
  std::function<void(const char* request, GuestRange range)> on_request;  // may throw
  std::vector<bool> allocated;  // per cluster of limits.cluster_size, where that is set
  WaitQueue held;               // requests wait here while `hold` is set
  bool hold = false;

  std::uint64_t size() const { return bytes.size(); }
};

class MemoryDriver final : public Driver {
 public:
  MemoryDriver(Node& node, MemoryDisk& disk) : node_(node), disk_(disk) {}

  std::uint64_t size() const override { return disk_.size(); }
  Limits limits() const override { return disk_.limits; }

  Task<Extent> map(GuestRange range, MapMode) override {
    const std::uint64_t cluster = disk_.limits.cluster_size;
    Extent extent{.kind = Extent::Kind::data,
                  .length = range.length,
                  .host = HostOffset(range.start.bytes()),
                  .node = &node_};
    if (cluster == 0) co_return extent;
    const std::uint64_t first = range.start.bytes() / cluster;
    std::uint64_t end = first + 1;
    while (end * cluster < range.end().bytes() && allocated(end) == allocated(first)) ++end;
    extent.length = std::min(range.end().bytes(), end * cluster) - range.start.bytes();
    if (!allocated(first)) extent = {.kind = Extent::Kind::backing, .length = extent.length};
    co_return extent;
  }

  Task<void> read(GuestOffset offset, IoVec data) override {
    check({offset, data.size()}, disk_.limits.request_alignment, data);
    ++disk_.reads;
    co_await begin("read", {offset, data.size()});
    const std::uint64_t valid = clipped(offset, data.size());
    data.copy_from(std::span(disk_.bytes).subspan(offset.bytes(), valid));
    data.slice(valid).fill(std::byte{0});
    co_await end();
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    const GuestRange range{offset, data.size()};
    const std::uint64_t unit = disk_.limits.write_alignment != 0 ? disk_.limits.write_alignment
                                                                 : disk_.limits.request_alignment;
    check(range, unit, data);
    ++disk_.writes;
    EXPECT_TRUE(!flags.fua || disk_.limits.native_fua);
    if (flags.fua) ++disk_.fua_writes;
    if (flags.compressed) check_compressed(range);
    co_await begin(flags.compressed ? "compressed" : "write", range);
    const std::uint64_t valid = clipped(offset, data.size());
    data.copy_to(std::span(disk_.bytes).subspan(offset.bytes(), valid));
    allocate(range, true);
    co_await end();
  }

  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    check_range(range, disk_.limits.zero_alignment);
    EXPECT_TRUE(disk_.limits.can_zero);
    EXPECT_TRUE(!flags.fua || disk_.limits.native_fua);
    if (disk_.limits.max_zeroes != 0) {
      EXPECT_LE(range.length, disk_.limits.max_zeroes);
    }
    ++disk_.zeroes;
    co_await begin("zeroes", range);
    std::memset(disk_.bytes.data() + range.start.bytes(), 0, range.length);
    allocate(range, false);
    co_await end();
  }

  Task<void> discard(GuestRange range) override {
    check_range(range, disk_.limits.discard_alignment);
    if (disk_.limits.max_discard != 0) {
      EXPECT_LE(range.length, disk_.limits.max_discard);
    }
    ++disk_.discards;
    co_await begin("discard", range);
    if (disk_.ignores_discards) {
      co_await end();
      co_return;
    }
    std::memset(disk_.bytes.data() + range.start.bytes(), 0, range.length);
    allocate(range, false);
    co_await end();
  }

  Task<void> flush() override {
    ++disk_.flushes;
    co_await begin("flush", {});
    co_await end();
  }

  Task<void> truncate(std::uint64_t size, TruncateOptions) override {
    co_await begin("truncate", {});
    disk_.bytes.resize(size);
    co_await end();
  }

  Task<void> apply_permissions(Permissions permissions) override {
    if (disk_.on_permissions) disk_.on_permissions(permissions);
    co_return;
  }
  Task<void> reopen(bool read_only) override {
    if (disk_.on_request) disk_.on_request(read_only ? "reopen ro" : "reopen rw", {});
    disk_.read_only = read_only;
    co_return;
  }
  Task<void> close() override {
    disk_.closed = true;
    co_return;
  }

 private:
  bool allocated(std::uint64_t cluster) const {
    return cluster < disk_.allocated.size() && disk_.allocated[cluster];
  }
  void allocate(GuestRange range, bool allocated) {
    const std::uint64_t cluster = disk_.limits.cluster_size;
    if (cluster == 0) return;
    disk_.allocated.resize(divide_up(disk_.size(), cluster));
    const std::uint64_t end = std::min(range.end().bytes(), disk_.size());
    for (std::uint64_t i = range.start.bytes() / cluster; i * cluster < end; ++i) {
      disk_.allocated[i] = allocated;
    }
  }
  void check_compressed(GuestRange range) {
    EXPECT_TRUE(disk_.limits.can_compress);
    EXPECT_TRUE(range.start.is_aligned(disk_.limits.cluster_size));
    for (std::uint64_t at = range.start.bytes(); at < range.end().bytes();
         at += disk_.limits.cluster_size) {
      if (disk_.cannot_replace_compressed && allocated(at / disk_.limits.cluster_size)) {
        throw Error(ENOTSUP, "The cluster is allocated");
      }
    }
    ++disk_.compressed_writes;
  }
  std::uint64_t clipped(GuestOffset offset, std::uint64_t length) const {
    return std::min(length, disk_.size() - offset.bytes());
  }
  void check_range(GuestRange range, std::uint64_t alignment) const {
    EXPECT_GT(range.length, 0u);
    EXPECT_LE(range.end().bytes(), disk_.size());
    if (alignment == 0) alignment = disk_.limits.request_alignment;
    EXPECT_TRUE(range.start.is_aligned(alignment));
    EXPECT_TRUE(range.end().is_aligned(alignment) || range.end().bytes() == disk_.size());
  }
  void check(GuestRange range, std::uint64_t alignment, ConstIoVec data) const {
    EXPECT_GT(range.length, 0u);
    EXPECT_TRUE(range.start.is_aligned(alignment)) << range.start.bytes();
    EXPECT_TRUE(range.end().is_aligned(alignment) || range.end().bytes() == disk_.size())
        << range.end().bytes();
    EXPECT_LE(range.end().bytes(), align_up(disk_.size(), alignment));
    EXPECT_TRUE(data.is_aligned(disk_.limits.memory_alignment));
    if (disk_.limits.max_transfer != 0) {
      EXPECT_LE(range.length, disk_.limits.max_transfer);
    }
    if (disk_.limits.max_segments != 0) {
      EXPECT_LE(data.segment_count(), disk_.limits.max_segments);
    }
  }
  Task<void> begin(const char* request, GuestRange range) {
    ++disk_.in_flight;
    if (disk_.on_request) disk_.on_request(request, range);
    while (disk_.hold) co_await disk_.held.wait();
    if (disk_.yields) co_await EventLoop::current().yield();
  }
  Task<void> end() {
    if (disk_.yields) co_await EventLoop::current().yield();
    --disk_.in_flight;
  }

  Node& node_;
  MemoryDisk& disk_;
};

/// Memory nodes find their disk by the option "disk", an address: tests have no global state.
inline Task<std::unique_ptr<Driver>> open_memory(OpenContext& context) {
  const auto address = context.options().take("disk");
  if (!address) throw Error(EINVAL, "Option 'disk' is missing");
  auto* disk = reinterpret_cast<MemoryDisk*>(static_cast<std::uintptr_t>(address->as_uint()));
  disk->opened = true;
  disk->read_only = context.node_options().read_only;
  co_return std::make_unique<MemoryDriver>(context.node(), *disk);
}

inline const DriverType memory_driver = {
    .name = "memory", .kind = DriverKind::protocol, .open = open_memory};

inline Value::Dict memory_options(MemoryDisk& disk) {
  Value::Dict options;
  options.set("driver", "memory");
  options.set("disk", reinterpret_cast<std::uintptr_t>(&disk));
  return options;
}

/// A graph with the memory driver, and short forms of what tests do with it.
class GraphTest : public ::testing::Test {
 protected:
  GraphTest() : graph_(context_) {
    context_.drivers().add(memory_driver);
    graph_.on_warning = [this](const std::string& text) { warnings_ += text + "\n"; };
  }
  ~GraphTest() override {
    run(graph_.close_all());
    EXPECT_TRUE(graph_.nodes().empty());
  }

  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }

  std::unique_ptr<Child> open(Value::Dict options, bool read_only = false) {
    OpenRequest request;
    request.options = std::move(options);
    request.defaults.read_only = read_only;
    request.defaults.discard_unmap = true;
    return run(graph_.open_root(std::move(request)));
  }
  std::unique_ptr<Child> open(MemoryDisk& disk) { return open(memory_options(disk)); }

  /// The errno and text of what `task` throws, as "ERRNO: text"; empty if it does not.
  template <class T>
  std::string failure(Task<T> task, int* code = nullptr) {
    try {
      run(std::move(task));
    } catch (const Error& error) {
      if (code != nullptr) *code = error.code();
      return error.what();
    }
    return {};
  }

  Context context_{Context::Options{.worker_threads = 1, .io_uring = false}};
  Graph graph_;
  std::string warnings_;
};

}  // namespace vise::test
