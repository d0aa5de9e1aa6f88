// The check that compressing in place begins with, while others write: it finds what is wrong all
// the same, and takes nothing that is being changed for wrong.
//   VISE_TEST_SEED=N  starts from that seed; it is printed by every failure
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <optional>
#include <random>

#include "format/qcow2/qcow2.h"
#include "format/qcow2/refcount_packing.h"
#include "graph/drained.h"
#include "qcow2_file_fixture.h"
#include "vise/driver_table.h"
#include "vise/filter.h"
#include "vise/sync.h"

namespace vise::qcow2 {
namespace {

using Bytes = std::vector<std::byte>;

/// Reads below the image take a while, in which writers get on.
struct Pace {
  bool slow = false;
  std::optional<GuestOffset> held;  // a read of that place waits for `released`
  AsyncEvent released;
  std::size_t writes = 0;  // that have been done
};

class PacedFile final : public Filter {
 public:
  PacedFile(std::unique_ptr<Child> child, Pace& pace) : Filter(std::move(child)), pace_(pace) {}

  Task<void> read(GuestOffset offset, IoVec data) override {
    co_await Filter::read(offset, data);
    if (pace_.held == offset) co_await pace_.released.wait();
    const std::size_t enough = pace_.writes + 3;
    // The writers themselves may be what waits here.
    for (int i = 0; i < 2000 && pace_.slow && pace_.writes < enough; ++i) {
      co_await EventLoop::current().yield();
    }
  }

 private:
  Pace& pace_;
};

Task<std::unique_ptr<Driver>> open_paced(OpenContext& context) {
  const auto address = context.options().take("pace");
  auto* pace = reinterpret_cast<Pace*>(static_cast<std::uintptr_t>(address->as_uint()));
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<PacedFile>(std::move(child), *pace);
}

const DriverType paced_driver = {.name = "paced", .kind = DriverKind::filter, .open = open_paced};

class CheckInUseTest : public QcowFileTest {
 protected:
  static constexpr std::uint64_t cluster = 1024;  // 128 clusters a table
  static constexpr std::uint64_t clusters = 128 * 40;

  void SetUp() override {
    context_.drivers().add(paced_driver);
    Value::Dict options;
    options.set("cluster_size", "1k");
    write_file(file(), new_image(options, clusters * cluster));
    model_.assign(clusters * cluster, std::byte{0});
    open();
    for (std::uint64_t at = 0; at + 3 < clusters; at += 7) write(at, 3, at % 2 == 0);
  }

  void open() {
    OpenRequest request;
    request.options.set("driver", "qcow2");
    request.options.set("file.driver", "paced");
    request.options.set("file.pace", reinterpret_cast<std::uintptr_t>(&pace_));
    request.options.set("file.file.driver", "file");
    request.options.set("file.file.filename", file());
    request.defaults.discard_unmap = true;
    root_ = run(graph_.open_root(std::move(request)));
  }
  void close() {
    run(root_->detach());
    root_.reset();
  }
  Qcow2& image() { return dynamic_cast<Qcow2&>(root_->node().driver()); }

  Bytes fill(std::uint64_t count, std::size_t most_noise = cluster / 2) {
    Bytes bytes(count * cluster);
    for (std::uint64_t i = 0; i < count; ++i) {
      // A part of each is noise, so that compressed clusters have all sizes.
      const std::size_t noise = random_() % most_noise;
      for (std::size_t k = 0; k <= noise; ++k) bytes[i * cluster + k] = std::byte(random_());
    }
    return bytes;
  }
  void remember(std::uint64_t first, const Bytes& bytes) {
    std::ranges::copy(bytes, model_.begin() + static_cast<std::ptrdiff_t>(first * cluster));
  }
  void write(std::uint64_t first, std::uint64_t count, bool compressed,
             std::size_t most_noise = cluster / 2) {
    const Bytes bytes = fill(count, most_noise);
    remember(first, bytes);
    WriteFlags flags;
    flags.compressed = compressed;
    run(root_->write(GuestOffset(first * cluster), ConstIoVec(std::span(bytes)), flags));
  }

  // One request after the other, until told to stop.
  Task<void> keep_writing() {
    while (!ending_) {
      const std::uint64_t count = 1 + random_() % 12;
      const std::uint64_t first = left_alone_ + random_() % (clusters - count - left_alone_);
      const GuestRange range{GuestOffset(first * cluster), count * cluster};
      const auto kind = random_() % 8;
      if (kind == 0) {
        co_await root_->flush();
      } else if (kind == 1) {
        remember(first, Bytes(range.length));
        co_await root_->write_zeroes(range, {.may_unmap = true});
      } else {
        const Bytes bytes = fill(count);
        remember(first, bytes);
        const WriteFlags flags{.compressed = kind < 5};
        co_await root_->write(range.start, ConstIoVec(std::span(bytes)), flags);
      }
      ++pace_.writes;
    }
  }
  Task<void> drained(std::function<Task<void>()> step) {
    co_await while_drained(root_->node(), std::move(step));
  }
  Task<void> check_in_use(unsigned writers) {
    co_await drained([this] { return image().begin_compressing(); });
    TaskScope scope;
    ending_ = false;
    for (unsigned i = 0; i < writers; ++i) scope.spawn(keep_writing());
    pace_.slow = writers > 0;
    co_await image().check_metadata();
    pace_.slow = false;
    if (writers > 0) {
      // What is freed only after the check has seen it counts as well.
      const std::size_t enough = pace_.writes + random_() % 20;
      while (pace_.writes < enough) co_await context_.loop().yield();
    }
    std::exception_ptr failure;
    try {
      co_await drained([this] { return image().end_check(); });
    } catch (...) {
      failure = std::current_exception();
    }
    ending_ = true;
    co_await scope.join();
    if (failure) std::rethrow_exception(failure);
  }

  /// Adds to the count of a host cluster in the closed image.
  void add_count(std::uint64_t host, std::int64_t change) {
    Bytes bytes = read_file(file());
    const Header header = Header::decode(bytes, Header::Purpose::check);
    const auto block = load_be<std::uint64_t>(
        &bytes[header.refcount_table_offset.bytes() + host / header.refcount_block_entries() * 8]);
    ASSERT_NE(block, 0u);
    const std::uint64_t index = host % header.refcount_block_entries();
    const std::uint64_t count = load_refcount(&bytes[block], header.refcount_order, index);
    store_refcount(&bytes[block], header.refcount_order, index, count + change);
    if (bytes.size() < (host + 1) * cluster) bytes.resize((host + 1) * cluster);
    write_file(file(), bytes);
  }
  std::uint64_t host_of(std::uint64_t guest) {
    const Extent extent =
        run(image().map({GuestOffset(guest * cluster), cluster}, MapMode::allocation_only));
    return extent.host->bytes() / cluster;
  }

  void expect_sound() {
    Bytes content(model_.size());
    run(root_->read(GuestOffset(0), IoVec(std::span(content))));
    EXPECT_TRUE(content == model_) << "content differs";
    close();
    const CheckResult found = check(Repair::none);
    EXPECT_EQ(found.corruptions + found.leaks + found.check_errors, 0u) << findings_;
  }

  const unsigned seed_ = test_seed();
  std::mt19937 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "VISE_TEST_SEED=" + std::to_string(seed_)};
  std::unique_ptr<Child> root_;
  Bytes model_;
  std::uint64_t left_alone_ = 0;  // clusters at the start of the disk, by writers
  bool ending_ = false;
  Pace pace_;
};

TEST_F(CheckInUseTest, WhatChangesMeanwhileIsNoFault) {
  for (int round = 0; round < 8; ++round) run(check_in_use(3));
  EXPECT_GT(pace_.writes, 40u);
  expect_sound();
}

TEST_F(CheckInUseTest, LeaksAreGivenBackBesideWriters) {
  const std::uint64_t packed = host_of(0);
  left_alone_ = 64;  // what is being changed stays as it is for this time
  close();
  const std::uint64_t end = std::filesystem::file_size(file()) / cluster;
  add_count(end + 3, 1);
  add_count(end + 4, 9);
  add_count(packed, 2);
  open();
  run(check_in_use(3));
  expect_sound();
}

// Nothing on the disk refers to it any more, yet it counts while a reader may be there.
TEST_F(CheckInUseTest, WhatWaitsForAReaderIsNoLeak) {
  const std::uint64_t plain = host_of(7);
  write(200, 8, true, 16);  // several in one host cluster
  run(drained([this] { return image().begin_compressing(); }));
  pace_.held = GuestOffset(plain * cluster);
  Bytes bytes(cluster);
  TaskScope reading;
  reading.spawn(root_->read(GuestOffset(7 * cluster), IoVec(std::span(bytes))));
  write(200, 1, true);
  run(root_->flush());
  run(image().check_metadata());
  pace_.released.set();
  run(reading.join());
  run(drained([this] { return image().end_check(); }));
  expect_sound();
}

// It says that the cluster is ours alone.
TEST_F(CheckInUseTest, AFlagThatContradictsALeakIsNoCorruption) {
  const std::uint64_t plain = host_of(7);
  close();
  add_count(plain, 1);
  open();
  run(check_in_use(0));
  expect_sound();
}

TEST_F(CheckInUseTest, AClusterThatCountsAsFreeIsFound) {
  const std::uint64_t plain = host_of(7);
  close();
  add_count(plain, -1);
  open();
  expect_error(EIO, "must be rebuilt", [&] { run(check_in_use(0)); });
  close();
}

TEST_F(CheckInUseTest, DamageIsFoundBesideWriters) {
  close();
  // A writer would find out about a cluster that counts as free. Two L1 entries for one table.
  Bytes bytes = read_file(file());
  const Header header = Header::decode(bytes, Header::Purpose::check);
  const std::size_t l1 = header.l1_offset.bytes();
  std::copy_n(&bytes[l1 + 8 * 38], 8, &bytes[l1 + 8 * 39]);
  write_file(file(), bytes);
  open();
  expect_error(EIO, "corrupt", [&] { run(check_in_use(1)); });
  close();
}

}  // namespace
}  // namespace vise::qcow2
