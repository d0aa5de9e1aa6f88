// Moving together what an image with snapshots and dirty bitmaps holds: in every state that a power
// failure leaves, and whatever request fails, the disk and all snapshots hold what they held, the
// metadata is sound, and the next run makes the file as short as it can be.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <random>

#include "copy/compress_in_place.h"
#include "crash/replay.h"
#include "crash/rig.h"
#include "crash/snapshot_rig.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/refcount_packing.h"
#include "graph/bitmaps.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::crash {
namespace {

constexpr unsigned states_per_resumption = 12;
// In some of the resumptions the power fails again, soon.
constexpr unsigned resumptions_per_failure = 4;
constexpr unsigned states_of_second_failure = 60;

Shape shape(const char* name, std::uint64_t cluster, const char* codec,
            std::initializer_list<std::pair<const char*, const char*>> options = {},
            unsigned entry_size = 8) {
  Shape made{.name = name, .cluster_size = cluster};
  made.create_options.set("compression_type", codec);
  for (const auto& [key, value] : options) made.create_options.set(key, value);
  // What three L2 tables have, the last of them behind a gap of some.
  const std::uint64_t coverage = cluster / entry_size * cluster;
  made.windows = {{GuestOffset(0), 20 * cluster},
                  {GuestOffset(coverage - 8 * cluster), 16 * cluster},
                  {GuestOffset(5 * coverage), 12 * cluster - 512}};
  made.size = made.windows.back().end().bytes();
  made.vm_state = 2 * cluster + 512;
  // One snapshot, of clusters that hold one extent, is all that the narrowest refcounts can count.
  const Value* bits = made.create_options.find("refcount_bits");
  made.compressed_writes = bits == nullptr || bits->as_string() != "2";
  return made;
}

std::vector<Shape> shapes() {
  return {shape("zlib_512", 512, "zlib"),
          shape("zlib_4k", 4096, "zlib"),
          shape("zstd_4k", 4096, "zstd"),
          shape("zstd_64k", 65536, "zstd"),
          shape("version2", 4096, "zlib", {{"compat", "0.10"}}),
          shape("refcount2", 4096, "zlib", {{"refcount_bits", "2"}}),
          shape("refcount4", 1024, "zlib", {{"refcount_bits", "4"}}),
          shape("refcount8", 1024, "zstd", {{"refcount_bits", "8"}}),
          shape("refcount64", 512, "zlib", {{"refcount_bits", "64"}}),
          shape("extended", 16384, "zlib", {{"extended_l2", "on"}}, 16)};
}

/// Clusters that the refcounts say are in use.
std::uint64_t clusters_in_use(const Image& image) {
  std::vector<std::byte> first(4096);
  image.read(0, first);
  const auto header = qcow2::Header::decode(first, qcow2::Header::Purpose::check);
  std::vector<std::byte> table(header.refcount_table().length);
  image.read(header.refcount_table_offset.bytes(), table);
  std::uint64_t used = 0;
  std::vector<std::byte> block(header.cluster_size());
  for (std::size_t at = 0; at < table.size(); at += 8) {
    const auto offset = load_be<std::uint64_t>(&table[at]);
    if (offset == 0) continue;
    image.read(offset, block);
    for (std::uint64_t i = 0; i < header.refcount_block_entries(); ++i) {
      if (qcow2::load_refcount(block.data(), header.refcount_order, i) != 0) ++used;
    }
  }
  return used;
}

class CompactRig : public SnapshotRig {
 public:
  explicit CompactRig(const Shape& shape) : SnapshotRig(shape), shape_(shape) {}

  bool has_bitmaps() const { return !shape_.is_version2(); }

  /// An image whose front is free, since only a snapshot that has gone had it, and behind that
  /// clusters of every kind, alone and shared by the disk and two snapshots.
  Image prepare_scattered(std::uint64_t seed) {
    Clock clock;
    Disk disk(clock, Image(), {});
    run_on(disk, create_image());
    std::mt19937_64 random(seed);
    run_on(disk, fill_scattered(random));
    return disk.image();
  }

  Task<void> fill_scattered(std::mt19937_64& random) {
    std::unique_ptr<Child> root = co_await open(true);
    for (const GuestRange& window : shape_.windows) {
      Buffer data(window.length);
      for (std::size_t i = 0; i < data.size(); i += 8) store_be(data.data() + i, random());
      co_await root->write(window.start, ConstIoVec(data.span()));
    }
    co_await add_snapshot(*root, "gone");
    if (has_bitmaps()) {
      add_bitmap(root->node(), {.name = "first", .granularity = 512, .persistent = true});
      co_await root->detach();  // it is stored
      root = co_await open(true);
    }
    for (const GuestRange& window : shape_.windows) {
      co_await root->write_zeroes(window, {.may_unmap = true});
    }
    for (const char* name : {"old", "young"}) {
      if (!shape_.compressed_writes && name == std::string_view("young")) continue;
      co_await write_some(*root, random, 60);
      Buffer state(shape_.vm_state);
      for (std::byte& byte : state.span()) byte = static_cast<std::byte>(random() % 3);
      co_await dynamic_cast<HasVmState&>(root->node().driver())
          .save_vm_state(0, ConstIoVec(state.span()));
      co_await add_snapshot(*root, name);
    }
    co_await write_some(*root, random, 25);
    SnapshotSelector which;
    which.name = "gone";
    co_await root->node().drain_begin();
    co_await dynamic_cast<HasSnapshots&>(root->node().driver()).delete_snapshot(std::move(which));
    root->node().drain_end();
    co_await root->detach();
  }

  /// Compresses and compacts; after a failure the guest goes on, and it is tried again.
  Task<std::uint64_t> compact(const qcow2::OrderRules& rules) {
    std::unique_ptr<Child> root = co_await open(true);
    dynamic_cast<qcow2::Qcow2&>(root->node().driver()).order_rules() = rules;
    std::exception_ptr failure;
    std::uint64_t moved = 0;
    for (int attempt = 0; attempt < 2; ++attempt) {
      failure = nullptr;
      try {
        InPlaceRequest request;
        request.image = root.get();
        request.options.compact = true;
        const InPlaceProgress done = co_await compress_in_place(std::move(request));
        moved = done.moved;
      } catch (const Error&) {
        failure = std::current_exception();
      }
      if (!failure) break;
      try {
        std::mt19937_64 random(3);
        co_await write_some(*root, random, 40);
      } catch (const Error&) {
        // The disk may go on failing.
      }
    }
    co_await end_session(std::move(root), failure);
    co_return moved;
  }

  /// Compacts `image` and expects it to be as short as it can be.
  std::string finish(Image image, const ImageContent& content) {
    Clock clock;
    Disk disk(clock, std::move(image), {});
    run_on(disk, compact({}));
    return examine_finished(disk.image(), content);
  }

  std::string examine_finished(const Image& image, const ImageContent& content) {
    std::string problem = examine(image, content);
    if (!problem.empty()) return problem;
    const std::uint64_t used = clusters_in_use(image);
    const std::uint64_t there = (image.size() + shape_.cluster_size - 1) / shape_.cluster_size;
    // On closing, the directory of the bitmaps is written anew.
    if (there <= used + 1) return {};
    return fmt::format("{} clusters, of which {} are in use", there, used);
  }

  std::string examine(const Image& image, const ImageContent& content) {
    const std::string findings = check_strictly(image);
    if (!findings.empty()) return findings;
    const ImageContent found = read(image);
    if (found.disk != content.disk) return "the disk has changed";
    if (found.snapshots != content.snapshots) return "a snapshot has changed";
    return {};
  }

  /// Empty, or what is wrong with a state of a run with `rules`.
  std::string crash_and_examine(std::uint64_t seed, const qcow2::OrderRules& rules) {
    const Image start = prepare_scattered(seed);
    std::string problem = check(start);
    if (!problem.empty()) return "at the start: " + problem;
    const ImageContent content = read(start);
    Clock clock;
    Disk disk(clock, start, {.seed = seed, .usual_delay = 3});
    moved_ += run_on(disk, compact(rules));
    problem = examine_finished(disk.image(), content);
    if (!problem.empty()) return "at the end: " + problem;
    std::mt19937_64 random(seed);
    const Effort effort{.moments_per_flush = 3, .subsets_per_moment = 4};
    for_each_state(start, disk.log(), clock.now(), effort, random, [&](const State& state) {
      ++states_;
      problem = examine(state.image, content);
      if (problem.empty() && random() % states_per_resumption == 0) {
        problem = resume(state.image, content);
        if (problem.empty() && random() % resumptions_per_failure == 0) {
          problem = fail_again(state.image, content, random());
        }
      }
      if (!problem.empty())
        problem = fmt::format("seed {}, {}: {}", seed, state.description, problem);
      return problem.empty();
    });
    return problem;
  }

  std::string resume(const Image& image, const ImageContent& content) {
    const Image written = overwrite(image, 1);
    const std::string problem = check(written);
    if (!problem.empty()) return "after writing: " + problem;
    if (read(written).snapshots != content.snapshots) return "writing changed a snapshot";
    return finish(image, content);
  }

  /// The power fails while the next run puts right what the last one left.
  std::string fail_again(const Image& start, const ImageContent& content, std::uint64_t seed) {
    Clock clock;
    Disk disk(clock, start, {.seed = seed, .usual_delay = 3});
    run_on(disk, compact({}));
    std::mt19937_64 random(seed);
    std::string problem;
    unsigned left = states_of_second_failure;
    const Effort effort{.moments_per_flush = 2, .subsets_per_moment = 3};
    for_each_state(start, disk.log(), clock.now(), effort, random, [&](const State& state) {
      ++states_;
      problem = examine(state.image, content);
      if (!problem.empty()) problem = fmt::format("then {}: {}", state.description, problem);
      return problem.empty() && --left > 0;
    });
    return problem;
  }

  std::uint64_t states() const { return states_; }
  std::uint64_t moved() const { return moved_; }

 private:
  const Shape shape_;
  std::uint64_t states_ = 0;
  std::uint64_t moved_ = 0;
};

class CrashCompact : public testing::TestWithParam<Shape> {
 protected:
  CompactRig rig_{GetParam()};
};

TEST_P(CrashCompact, APowerFailureLosesNothing) {
  const Settings settings = Settings::from_environment();
  const unsigned usual = GetParam().cluster_size < 65536 ? 2 : 1;  // for the time it takes
  const unsigned runs = settings.runs != 0 ? settings.runs : usual;
  for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
    ASSERT_EQ(rig_.crash_and_examine(seed, {}), "");
  }
  EXPECT_GT(rig_.moved(), 0u);
  std::cout << rig_.states() << " states, " << rig_.moved() << " bytes moved\n";
}

TEST_P(CrashCompact, AFailedRequestHarmsNothing) {
  const std::uint64_t seed = Settings::from_environment().seed;
  const Image start = rig_.prepare_scattered(seed);
  const ImageContent content = rig_.read(start);
  std::mt19937_64 random(seed);
  for (const auto target : {Disk::Fault::Target::write, Disk::Fault::Target::flush}) {
    for (std::uint64_t number = 1;; number += 1 + random() % 7) {
      SCOPED_TRACE(fmt::format("{} {} fails",
                               target == Disk::Fault::Target::write ? "write" : "flush", number));
      Clock clock;
      Disk disk(clock, start, {.seed = number});
      disk.set_fault(Disk::Fault{.target = target, .number = number});
      try {
        rig_.run_on(disk, rig_.compact({}));
      } catch (const Error&) {
        // It may be the request of somebody who does not try again.
      }
      ASSERT_EQ(rig_.check_strictly(disk.image()), "");
      // The guest has written since.
      ImageContent found = rig_.read(disk.image());
      ASSERT_EQ(found.snapshots, content.snapshots);
      if (!disk.fault_happened()) break;
      ASSERT_EQ(rig_.finish(disk.image(), found), "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Qcow2, CrashCompact, testing::ValuesIn(shapes()),
                         [](const auto& test) { return std::string(test.param.name); });

struct Rule {
  const char* name;
  bool qcow2::OrderRules::* rule;
};

class CompactWithoutRule : public testing::TestWithParam<Rule> {};

// Or the test examines too little.
TEST_P(CompactWithoutRule, SomethingIsLost) {
  CompactRig rig(shape("zlib_1k", 1024, "zlib"));
  qcow2::OrderRules rules;
  rules.*GetParam().rule = false;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    const std::string problem = rig.crash_and_examine(seed, rules);
    if (problem.empty()) continue;
    std::cout << problem << "\n";
    return;
  }
  FAIL() << "nothing was lost";
}

INSTANTIATE_TEST_SUITE_P(
    Qcow2, CompactWithoutRule,
    testing::Values(Rule{"data_before_names", &qcow2::OrderRules::data_before_names},
                    Rule{"names_before_free", &qcow2::OrderRules::names_before_free}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace vise::crash
