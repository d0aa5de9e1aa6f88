// Power failures and failing disks while snapshots are made, applied, deleted and compressed, while
// the disk changes its size and the image its version: afterwards the image is as before or as
// after, every snapshot holds what it held, and writing to the disk harms none of them.
#include <gtest/gtest.h>

#include <random>

#include "copy/compress_in_place.h"
#include "crash/replay.h"
#include "crash/snapshot_rig.h"
#include "vise/error.h"

namespace vise::crash {
namespace {

enum class Step {
  create,
  apply,
  delete_oldest,
  delete_newest,
  grow,
  shrink,
  empty,
  widen,
  upgrade,
  downgrade,
  compress
};

Task<void> perform(Child& root, Step step) {
  Node& node = root.node();
  auto& snapshots = dynamic_cast<HasSnapshots&>(node.driver());
  SnapshotSelector which;
  switch (step) {
    case Step::create: {
      NewSnapshot fresh;
      fresh.name = "new";
      co_await snapshots.create_snapshot(std::move(fresh));
      break;
    }
    case Step::apply:
      which.name = "old";
      co_await snapshots.apply_snapshot(std::move(which));
      break;
    case Step::delete_oldest:
      which.name = "old";
      co_await snapshots.delete_snapshot(std::move(which));
      break;
    case Step::delete_newest:
      which.name = "young";
      co_await snapshots.delete_snapshot(std::move(which));
      break;
    case Step::grow: {
      const TruncateOptions options{.preallocation = Preallocation::metadata};
      co_await root.truncate(root.size() * 2, options);
      break;
    }
    case Step::shrink:
      co_await root.truncate(root.size() / 3 / 512 * 512);
      break;
    case Step::empty:
      co_await dynamic_cast<HasBackingFile&>(node.driver()).make_empty();
      break;
    case Step::widen:
    case Step::upgrade:
    case Step::downgrade: {
      AmendRequest request;
      if (step == Step::downgrade) {
        request.options.set("compat", "0.10");
        request.options.set("refcount_bits", "16");
      }
      if (step == Step::widen) request.options.set("refcount_bits", "32");
      if (step == Step::upgrade) request.options.set("compat", "1.1");
      co_await dynamic_cast<Amendable&>(node.driver()).amend(std::move(request));
      break;
    }
    case Step::compress: {
      InPlaceRequest request;
      request.image = &root;
      request.options.compact = true;
      co_await compress_in_place(std::move(request));
    }
  }
}

class SnapshotCrash : public testing::TestWithParam<Shape>, protected SnapshotRig {
 protected:
  SnapshotCrash() : SnapshotRig(GetParam()) {}

  /// Empty, or what is wrong with a state that must be `before` or `after`.
  std::string examine(const Image& image, Step step, const ImageContent& before,
                      const ImageContent& after) {
    const std::string findings = check(image);
    if (!findings.empty()) return findings;
    const ImageContent found = read(image);
    if (found.snapshots != before.snapshots && found.snapshots != after.snapshots) {
      return "the snapshots hold neither what they held before nor after";
    }
    // Resizing and emptying are done bit by bit.
    const bool gradual = step == Step::shrink || step == Step::empty;
    if (!gradual && found.disk != before.disk && found.disk != after.disk) {
      return "the disk is neither as before nor as after";
    }
    if (gradual && found.disk.size() != before.disk.size() &&
        found.disk.size() != after.disk.size()) {
      return "the disk has a size it never had";
    }
    const Image going_on = overwrite(image, 1);
    const std::string later = check(going_on);
    if (!later.empty()) return "after going on: " + later;
    if (read(going_on).snapshots != found.snapshots) return "writing changed a snapshot";
    return {};
  }

  Task<void> run_step(Step step) {
    std::unique_ptr<Child> root = co_await open(true);
    std::exception_ptr failure;
    const bool drains = step == Step::grow || step == Step::shrink || step == Step::compress;
    try {
      if (!drains) co_await root->node().drain_begin();
      co_await perform(*root, step);
    } catch (...) {
      failure = std::current_exception();
    }
    if (!drains) root->node().drain_end();
    if (failure) {
      // The session goes on after a failure; it must know what is on disk.
      try {
        std::mt19937_64 random(2);
        co_await write_some(*root, random, 150);
      } catch (const Error&) {
        // The disk may go on failing.
      }
    }
    co_await end_session(std::move(root), failure);
  }

  static std::vector<Step> steps() {
    std::vector<Step> all = {Step::create, Step::delete_oldest, Step::delete_newest, Step::empty,
                             Step::compress};
    if (GetParam().is_version2()) {
      all.insert(all.end(), {Step::apply, Step::upgrade});
    } else {
      all.insert(all.end(), {Step::apply, Step::grow, Step::shrink, Step::widen});
    }
    const bool may_lower =
        !GetParam().is_version2() && GetParam().create_options.find("extended_l2") == nullptr;
    if (may_lower) all.push_back(Step::downgrade);
    return all;
  }

  // In version 2 all snapshots have the same size.
  Image start_of(Step step, std::uint64_t seed) {
    const bool may_grow = !GetParam().is_version2() && step != Step::downgrade;
    return prepare(seed, may_grow ? Sizes::grow : Sizes::stay);
  }
};

TEST_P(SnapshotCrash, APowerFailureLeavesTheStateBeforeOrAfter) {
  std::uint64_t states = 0;
  for (const Step step : steps()) {
    const Image start = start_of(step, static_cast<std::uint64_t>(step) + 1);
    ASSERT_EQ(check(start), "");
    const ImageContent before = read(start);
    Clock clock;
    Disk disk(clock, start, {});
    run_on(disk, run_step(step));
    ASSERT_EQ(check(disk.image()), "");
    const ImageContent after = read(disk.image());
    std::mt19937_64 random(1);
    std::string problem;
    const Effort effort{.moments_per_flush = 4, .subsets_per_moment = 5};
    for_each_state(start, disk.log(), clock.now(), effort, random, [&](const State& state) {
      ++states;
      problem = examine(state.image, step, before, after);
      if (!problem.empty()) problem = state.description + ": " + problem;
      return problem.empty();
    });
    ASSERT_EQ(problem, "") << "step " << static_cast<int>(step);
  }
  std::cout << states << " states\n";
}

TEST_P(SnapshotCrash, AFailingRequestLeavesTheStateBeforeOrAfter) {
  for (const Step step : steps()) {
    const Image start = start_of(step, static_cast<std::uint64_t>(step) + 11);
    const ImageContent before = read(start);
    Clock clock;
    Disk good(clock, start, {});
    run_on(good, run_step(step));
    const ImageContent after = read(good.image());
    for (const auto target : {Disk::Fault::Target::write, Disk::Fault::Target::flush}) {
      for (std::uint64_t number = 1;; ++number) {
        Disk disk(clock, start, {});
        disk.set_fault(Disk::Fault{.target = target, .number = number});
        try {
          run_on(disk, run_step(step));
        } catch (const Error&) {
          // As it must.
        }
        ASSERT_EQ(check(disk.image()), "")
            << "step " << static_cast<int>(step) << ", request " << number;
        const ImageContent found = read(disk.image());
        ASSERT_TRUE(found.snapshots == before.snapshots || found.snapshots == after.snapshots)
            << "step " << static_cast<int>(step) << ", request " << number;
        if (!disk.fault_happened()) break;
      }
    }
  }
}

Value::Dict with(std::initializer_list<std::pair<const char*, const char*>> options) {
  Value::Dict dict;
  for (const auto& [name, value] : options) dict.set(name, value);
  return dict;
}

INSTANTIATE_TEST_SUITE_P(
    Qcow2, SnapshotCrash,
    testing::Values(Shape{"small", 512, 100 << 10, {}},
                    Shape{"v2", 1024, 200 << 10, with({{"compat", "0.10"}})},
                    Shape{"wide", 512, 70 << 10, with({{"refcount_bits", "64"}})},
                    Shape{"above", 1024, 100 << 10,
                          with({{"backing_file", "below"}, {"backing_fmt", "raw"}})},
                    Shape{"extended", 16384, 400 << 10, with({{"extended_l2", "on"}})}),
    [](const testing::TestParamInfo<Shape>& test) { return test.param.name; });

}  // namespace
}  // namespace vise::crash
