// Power failures and failing disks while snapshots are made, applied, deleted and compressed, while
// the disk changes its size and the image its version: afterwards the image is as before or as
// after, every snapshot holds what it held, and writing to the disk harms none of them.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "copy/compress_in_place.h"
#include "crash/disk.h"
#include "crash/model.h"
#include "crash/replay.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::crash {
namespace {

using Bytes = std::vector<std::byte>;

struct Shape {
  const char* name;
  std::uint64_t cluster_size;
  std::uint64_t size;  // bytes of the disk
  Value::Dict create_options;
};

void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }  // NOLINT

/// What can be read of an image.
struct Content {
  Bytes disk;
  std::map<std::string, Bytes> snapshots;
  bool operator==(const Content&) const = default;
};

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

class SnapshotCrash : public testing::TestWithParam<Shape> {
 protected:
  SnapshotCrash() : graph_(context_) { context_.drivers().add(disk_type_); }
  ~SnapshotCrash() override { context_.loop().run(graph_.close_all()); }

  /// An image with two snapshots and clusters of every kind, alone and shared.
  Image prepare(std::uint64_t seed, Step step) {
    Clock clock;
    Disk disk(clock, Image(), {});
    disk_type_.disk = &disk;
    context_.loop().run(create_image());
    std::mt19937_64 random(seed);
    context_.loop().run(fill_image(random, step));
    return disk.image();
  }

  Task<std::unique_ptr<Child>> open(bool writable, OpenPurpose purpose = OpenPurpose::io) {
    Value::Dict disk;
    disk.set("driver", "crash-disk");
    OpenRequest request;
    request.options.set("driver", "qcow2");
    request.options.set("discard", "unmap");
    if (has_backing()) request.options.set("backing", Value());
    request.options.set("file", std::move(disk));
    request.defaults.read_only = !writable;
    request.defaults.purpose = purpose;
    return graph_.open_root(std::move(request));
  }

  Content read(const Image& image) {
    Clock clock;
    Disk disk(clock, image, {});
    disk_type_.disk = &disk;
    return context_.loop().run(read_content());
  }

  /// What check finds, but for flags that are clear where they could be set.
  std::string check(const Image& image) {
    Clock clock;
    Disk disk(clock, image, {});
    disk_type_.disk = &disk;
    return context_.loop().run(check_image());
  }

  /// The guest goes on: overwrites a bit of everything.
  Image overwrite(const Image& image, std::uint64_t seed) {
    Clock clock;
    Disk disk(clock, image, {});
    disk_type_.disk = &disk;
    context_.loop().run(overwrite_disk(seed));
    return disk.image();
  }

  /// Empty, or what is wrong with a state that must be `before` or `after`.
  std::string examine(const Image& image, Step step, const Content& before, const Content& after) {
    const std::string findings = check(image);
    if (!findings.empty()) return findings;
    const Content found = read(image);
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

  Context context_;
  DiskDriverType disk_type_;
  Graph graph_;
  std::uint64_t contents_ = 0;

 private:
  Task<void> create_image() {
    OpenRequest open;
    open.options.set("driver", "crash-disk");
    const std::shared_ptr<Node> node = co_await graph_.open(std::move(open));
    CreateRequest request{graph_, "crash-test", GetParam().size, GetParam().create_options, node};
    request.options.set("cluster_size", GetParam().cluster_size);
    co_await context_.drivers().get("qcow2").create(request);
    co_await graph_.release(node);
  }

  Task<void> write_some(Child& root, std::mt19937_64& random, unsigned requests) {
    const std::uint64_t cluster = GetParam().cluster_size;
    const std::uint64_t size = root.size();
    for (unsigned i = 0; i < requests; ++i) {
      std::uint64_t from = random() % (size / 512) * 512;
      std::uint64_t length = std::min(size - from, (random() % (2 * cluster / 512) + 1) * 512);
      const unsigned kind = random() % 6;
      if (kind == 0) {
        const ZeroFlags flags{.may_unmap = random() % 2 == 0};
        co_await root.write_zeroes({GuestOffset(from), length}, flags);
        continue;
      }
      WriteFlags flags;
      if (kind < 3) {
        from -= from % cluster;
        length = std::min(cluster, size - from);
        flags.compressed = true;
      }
      Buffer data(length);
      fill(data, from / 512, ++contents_);
      co_await root.write(GuestOffset(from), ConstIoVec(data.span()), flags);
    }
  }

  Task<void> fill_image(std::mt19937_64& random, Step step) {
    std::unique_ptr<Child> root = co_await open(true);
    auto& driver = dynamic_cast<HasSnapshots&>(root->node().driver());
    for (const char* name : {"old", "young"}) {
      co_await write_some(*root, random, 25);
      NewSnapshot snapshot;
      snapshot.name = name;
      co_await root->node().drain_begin();
      co_await driver.create_snapshot(std::move(snapshot));
      root->node().drain_end();
      // In version 2 all have the same size.
      const bool may_grow = !is_version_2() && step != Step::downgrade;
      if (may_grow) co_await root->truncate(root->size() + 7 * GetParam().cluster_size + 512);
    }
    co_await write_some(*root, random, 20);
    co_await root->detach();
  }

  Task<Bytes> read_disk(Child& root) {
    Bytes bytes(root.size());
    if (!bytes.empty()) co_await root.read(GuestOffset(0), IoVec(std::span(bytes)));
    co_return bytes;
  }

  Task<Content> read_content() {
    Content content;
    std::unique_ptr<Child> root = co_await open(false);
    Bytes disk = co_await read_disk(*root);
    content.disk = std::move(disk);
    const DriverInfo info = co_await root->node().driver().info();
    co_await root->detach();
    if (!info.snapshots.is_list()) co_return content;
    for (const Value& snapshot : info.snapshots.as_list()) {
      SnapshotSelector which;
      which.name = snapshot.as_dict().find("name")->as_string();
      const std::string name = *which.name;
      std::unique_ptr<Child> view = co_await open(false);
      co_await dynamic_cast<HasSnapshots&>(view->node().driver()).view_snapshot(std::move(which));
      Bytes held = co_await read_disk(*view);
      content.snapshots[name] = std::move(held);
      co_await view->detach();
    }
    co_return content;
  }

  Task<std::string> check_image() {
    std::unique_ptr<Child> root = co_await open(false, OpenPurpose::check);
    std::string findings;
    std::uint64_t harmless = 0;
    CheckRequest request;
    request.on_finding = [&](const std::string& text) {
      if (text.find("OFLAG_COPIED") != std::string::npos && text.ends_with("refcount=1")) {
        ++harmless;
      } else {
        findings += text + "\n";
      }
    };
    auto& driver = dynamic_cast<Checkable&>(root->node().driver());
    const CheckResult result = co_await driver.check(std::move(request));
    co_await root->detach();
    if (result.corruptions == harmless && result.check_errors == 0) co_return std::string();
    co_return "check: " + findings;
  }

  Task<void> overwrite_disk(std::uint64_t seed) {
    std::unique_ptr<Child> root = co_await open(true);
    std::mt19937_64 random(seed);
    co_await write_some(*root, random, 30);
    co_await root->detach();
  }

 public:
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
    try {
      co_await root->detach();
    } catch (const Error&) {
      if (!failure) failure = std::current_exception();
    }
    if (failure) std::rethrow_exception(failure);
  }

  static std::vector<Step> steps() {
    std::vector<Step> all = {Step::create, Step::delete_oldest, Step::delete_newest, Step::empty,
                             Step::compress};
    if (is_version_2()) {
      all.insert(all.end(), {Step::apply, Step::upgrade});
    } else {
      all.insert(all.end(), {Step::apply, Step::grow, Step::shrink, Step::widen});
    }
    const bool may_lower =
        !is_version_2() && GetParam().create_options.find("extended_l2") == nullptr;
    if (may_lower) all.push_back(Step::downgrade);
    return all;
  }

  static bool is_version_2() { return GetParam().create_options.find("compat") != nullptr; }
  /// It is named, but not open: zeros must be kept as if something were below.
  static bool has_backing() { return GetParam().create_options.find("backing_file") != nullptr; }
};

TEST_P(SnapshotCrash, APowerFailureLeavesTheStateBeforeOrAfter) {
  std::uint64_t states = 0;
  for (const Step step : steps()) {
    const Image start = prepare(static_cast<std::uint64_t>(step) + 1, step);
    ASSERT_EQ(check(start), "");
    const Content before = read(start);
    Clock clock;
    Disk disk(clock, start, {});
    disk_type_.disk = &disk;
    context_.loop().run(run_step(step));
    ASSERT_EQ(check(disk.image()), "");
    const Content after = read(disk.image());
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
    const Image start = prepare(static_cast<std::uint64_t>(step) + 11, step);
    const Content before = read(start);
    Clock clock;
    Disk good(clock, start, {});
    disk_type_.disk = &good;
    context_.loop().run(run_step(step));
    const Content after = read(good.image());
    for (const auto target : {Disk::Fault::Target::write, Disk::Fault::Target::flush}) {
      for (std::uint64_t number = 1;; ++number) {
        Disk disk(clock, start, {});
        disk.set_fault(Disk::Fault{.target = target, .number = number});
        disk_type_.disk = &disk;
        try {
          context_.loop().run(run_step(step));
        } catch (const Error&) {
          // As it must.
        }
        ASSERT_EQ(check(disk.image()), "")
            << "step " << static_cast<int>(step) << ", request " << number;
        const Content found = read(disk.image());
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
