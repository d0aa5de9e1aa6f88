// Internal snapshots against byte vectors: random writes of all kinds, snapshots taken, applied and
// deleted, the version of the image amended, all of it compressed in place; after each step counts
// are exact, and each snapshot and the disk hold what they held.
//   VISE_SEED=N  starts from that seed (1); it is printed by every failure
//   VISE_RUNS=N  as many seeds (1)
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "copy/compress_in_place.h"
#include "graph/drained.h"
#include "qcow2_file_fixture.h"
#include "tools/common/snapshots.h"
#include "vise/image_operations.h"

namespace vise::qcow2 {
namespace {

struct SnapshotCase {
  const char* name;
  std::vector<std::pair<const char*, const char*>> options;
  std::uint64_t clusters;
  bool amends = false;                 // changes the version now and then
  std::uint64_t backing_clusters = 0;  // 0: no backing image
};
void PrintTo(const SnapshotCase& c, std::ostream* out) { *out << c.name; }

unsigned number_from_environment(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 1;
}

using Bytes = std::vector<std::byte>;

class Qcow2SnapshotModel : public QcowFileTest, public testing::WithParamInterface<SnapshotCase> {
 protected:
  void make_image() {
    Value::Dict options;
    for (const auto& [name, value] : GetParam().options) options.set(name, value);
    const std::uint64_t cluster =
        Header::decode(new_image(options, 512), Header::Purpose::check).cluster_size();
    disk_.assign(GetParam().clusters * cluster + 512, std::byte{0});
    snapshots_.clear();
    made_ = 0;
    version_ = 3;
    if (GetParam().backing_clusters > 0) {
      Bytes below(GetParam().backing_clusters * cluster + 512);
      for (std::byte& byte : below) byte = static_cast<std::byte>(random_());
      write_file(folder_.file("below.raw"), below);
      std::copy_n(below.begin(), std::min(below.size(), disk_.size()), disk_.begin());
      options.set("backing_file", folder_.file("below.raw"));
      options.set("backing_fmt", "raw");
    }
    write_file(file(), new_image(options, disk_.size()));
  }

  std::unique_ptr<Child> open(bool read_only) {
    OpenRequest request;
    request.filename = file();
    request.format = "qcow2";
    request.defaults.read_only = read_only;
    request.defaults.discard_unmap = true;
    return run(graph_.open_root(std::move(request)));
  }

  template <class Use>
  void with_image(bool read_only, Use use) {
    std::unique_ptr<Child> root = open(read_only);
    use(*root);
    run(root->detach());
  }

  void one_step() {
    const unsigned kind = random_() % 8;
    with_image(false, [&](Child& root) {
      if (kind < 2 && snapshots_.size() < 5) {
        take(root);
      } else if (kind == 2 && !snapshots_.empty()) {
        apply(root, any());
      } else if (kind == 3 && !snapshots_.empty()) {
        remove(root, any());
      } else if (kind == 4 && GetParam().amends) {
        amend(root);
      } else {
        for (unsigned i = 0; i < 1 + random_() % 6; ++i) write(root);
        // Without reopening: what the driver knows in memory must be right, too.
        if (random_() % 3 == 0 && snapshots_.size() < 5) take(root);
        write(root);
        if (random_() % 3 == 0) compress_and_go_on(root);
      }
    });
  }

  void expect_exact() {
    const CheckResult result = check(Repair::none);
    ASSERT_EQ(result.corruptions, 0u) << findings_;
    ASSERT_EQ(result.leaks, 0u) << findings_;
    with_image(true, [&](Child& root) { expect_content(root, disk_, "the disk"); });
    for (const auto& [name, content] : snapshots_) {
      with_image(true, [&, &name = name, &content = content](Child& root) {
        const auto view = [&] { return driver(root).view_snapshot({.name = name}); };
        run(while_drained(root.node(), view));
        expect_content(root, content, name);
      });
    }
  }

  std::mt19937 random_;

 private:
  static HasSnapshots& driver(Child& root) {
    return *tools::find_interface<HasSnapshots>(root.node());
  }
  const std::string& any() {
    return std::next(snapshots_.begin(), random_() % snapshots_.size())->first;
  }

  /// Reading, before and after: what is remembered of a place must go when something else goes
  /// there.
  void compress_and_go_on(Child& root) {
    read_in_steps(root, "the disk before compressing");
    InPlaceRequest request;
    request.image = &root;
    request.options.compact = true;
    run(compress_in_place(std::move(request)));
    read_in_steps(root, "the disk after compressing");
    for (unsigned i = 0; i < random_() % 6; ++i) write(root);
    if (random_() % 2 == 0 && !snapshots_.empty()) apply(root, any());
    if (random_() % 2 == 0 && !snapshots_.empty()) remove(root, any());
    for (unsigned i = 0; i < random_() % 20; ++i) write(root);
    read_in_steps(root, "the disk after going on");
  }

  /// Parts of clusters are what is remembered.
  void read_in_steps(Child& root, const std::string& what) {
    Bytes found(512);
    for (std::uint64_t at = 0; at < disk_.size(); at += found.size()) {
      run(root.read(GuestOffset(at), IoVec(std::span(found))));
      const auto start = disk_.begin() + static_cast<std::ptrdiff_t>(at);
      ASSERT_TRUE(std::ranges::equal(found, std::span(start, found.size())))
          << what << " differs in the sector at " << at;
    }
  }

  void take(Child& root) {
    const std::string name = "s" + std::to_string(++made_);
    const auto work = [&] { return driver(root).create_snapshot({.name = name}); };
    run(while_drained(root.node(), work));
    snapshots_[name] = disk_;
  }
  void apply(Child& root, const std::string& name) {
    const auto work = [&] { return driver(root).apply_snapshot({.name = name}); };
    run(while_drained(root.node(), work));
    disk_ = snapshots_[name];
  }
  void remove(Child& root, const std::string& name) {
    const auto work = [&] { return driver(root).delete_snapshot({.name = name}); };
    run(while_drained(root.node(), work));
    snapshots_.erase(name);
  }

  void amend(Child& root) {
    version_ = 5 - version_;
    AmendRequest request;
    request.options.set("compat", version_ == 2 ? "0.10" : "1.1");
    auto& driver = *tools::find_interface<Amendable>(root.node());
    const auto work = [&] { return driver.amend(std::move(request)); };
    run(while_drained(root.node(), work));
  }

  void write(Child& root) {
    const std::uint64_t cluster = root.limits().cluster_size;
    std::uint64_t start = random_() % (disk_.size() / 512) * 512;
    std::uint64_t length = (1 + random_() % (4 * cluster / 512)) * 512;
    const unsigned kind = random_() % 6;
    if (kind < 3) start = start / cluster * cluster;
    length = std::min(length, disk_.size() - start);
    if (kind < 3 && start + length < disk_.size())
      length = std::max(length / cluster, std::uint64_t{1}) * cluster;
    length = std::min(length, disk_.size() - start);
    const auto at = disk_.begin() + static_cast<std::ptrdiff_t>(start);
    const GuestRange range{GuestOffset(start), length};
    if (kind == 3) {
      std::fill_n(at, length, std::byte{0});
      run(root.write_zeroes(range, ZeroFlags{.may_unmap = random_() % 2 == 0}));
      return;
    }
    if (kind == 4 && random_() % 2 == 0) {
      run(root.discard(range));
      run(root.read(range.start, IoVec(&*at, length)));  // what it leaves is the format's choice
      return;
    }
    Bytes bytes(length);
    const bool noise = random_() % 4 == 0;
    for (std::size_t i = 0; i < length; ++i) {
      bytes[i] = static_cast<std::byte>(noise ? random_() : i / 9 + random_() % 2);
    }
    std::ranges::copy(bytes, at);
    run(root.write(range.start, ConstIoVec(std::span(bytes)), WriteFlags{.compressed = kind < 3}));
  }

  void expect_content(Child& root, const Bytes& content, const std::string& what) {
    ASSERT_EQ(root.size(), content.size()) << what;
    Bytes found(content.size());
    run(root.read(GuestOffset(0), IoVec(std::span(found))));
    const auto [a, b] = std::ranges::mismatch(found, content);
    EXPECT_TRUE(a == found.end()) << what << " differs at byte " << (a - found.begin());
  }

  Bytes disk_;
  std::map<std::string, Bytes> snapshots_;
  unsigned made_ = 0;
  unsigned version_ = 3;
};

TEST_P(Qcow2SnapshotModel, KeepsEachSnapshotAndExactCounts) {
  const unsigned first = number_from_environment("VISE_SEED");
  for (unsigned seed = first; seed < first + number_from_environment("VISE_RUNS"); ++seed) {
    SCOPED_TRACE("VISE_SEED=" + std::to_string(seed));
    random_.seed(seed);
    make_image();
    for (int step = 0; step < 25; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      one_step();
      expect_exact();
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Images, Qcow2SnapshotModel,
    testing::Values(
        SnapshotCase{"FourKiB", {{"cluster_size", "4k"}}, 40},
        SnapshotCase{"SmallestClusters", {{"cluster_size", "512"}}, 200},
        SnapshotCase{"Zstd", {{"cluster_size", "8k"}, {"compression_type", "zstd"}}, 30},
        SnapshotCase{"Version2", {{"cluster_size", "4k"}, {"compat", "0.10"}}, 40},
        SnapshotCase{"WideCounts", {{"cluster_size", "1k"}, {"refcount_bits", "64"}}, 90},
        SnapshotCase{"ExtendedL2", {{"cluster_size", "16k"}, {"extended_l2", "on"}}, 12},
        SnapshotCase{"Amended", {{"cluster_size", "1k"}}, 90, true},
        SnapshotCase{"AmendedSmallClusters", {{"cluster_size", "512"}}, 150, true, 70},
        SnapshotCase{"AmendedAboveLongBacking", {{"cluster_size", "4k"}}, 30, true, 50}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace vise::qcow2
