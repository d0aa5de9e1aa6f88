// The qcow2 driver against a byte vector: random requests of every kind, several at a time, over
// cluster sizes, versions and codecs, with snapshots made, applied and deleted in between; after
// each session the image is checked by us and by the real qemu-img where it is installed, at the
// end compared by it.
//   VISE_SEED=N  starts from that seed (1); it is printed by every failure
//   VISE_RUNS=N  as many seeds (1)
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "qcow2_test_support.h"
#include "vise/context.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::qcow2 {
namespace {

struct ModelCase {
  const char* name;
  std::vector<std::pair<const char*, const char*>> options;
  std::uint64_t size;  // bytes of the disk
  bool backing = false;
  bool snapshots = true;  // counts of one bit cannot share clusters
};
void PrintTo(const ModelCase& c, std::ostream* out) { *out << c.name; }

unsigned number_from_environment(const char* name) {
  const char* text = std::getenv(name);
  return text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 1;
}

// Random bytes, half of them compressible, now and then all zeros.
std::vector<std::byte> random_bytes(std::mt19937& random, std::size_t length) {
  std::vector<std::byte> bytes(length);
  const unsigned kind = random() % 8;
  if (kind == 0) return bytes;
  for (std::size_t i = 0; i < length; ++i) {
    bytes[i] = static_cast<std::byte>(kind < 5 ? (i / 7 + random() % 2) : random());
  }
  return bytes;
}

class Twin {
 public:
  Twin(const ModelCase& c, unsigned seed) : case_(c), random_(seed), model_(c.size) {}

  Task<void> run(Graph& graph, std::string path, std::string backing) {
    if (!backing.empty()) {
      std::vector<std::byte> base = random_bytes(random_, case_.size / 2 + 512 * 3);
      write_file(backing, base);
      std::ranges::copy(base, model_.begin());
    }
    for (int session = 0; session < 3; ++session) {
      OpenRequest request;
      request.filename = path;
      request.format = "qcow2";
      request.defaults.discard_unmap = true;
      std::unique_ptr<Child> root = co_await graph.open_root(std::move(request));
      for (int batch = 0; batch < 12; ++batch) {
        co_await batch_of_requests(*root);
        if (random_() % 3 == 0) co_await root->flush();
        if (case_.snapshots && random_() % 4 == 0) co_await change_snapshots(root->node());
        co_await compare(*root);
      }
      co_await root->detach();
      co_await check(graph, path);
    }
  }

 private:
  Task<void> check(Graph& graph, std::string path) {
    OpenRequest request;
    request.filename = path;
    request.format = "qcow2";
    request.defaults.read_only = true;
    request.defaults.purpose = OpenPurpose::check;
    std::unique_ptr<Child> root = co_await graph.open_root(std::move(request));
    CheckRequest everything;
    everything.data = true;
    everything.on_finding = [](const std::string& text) { ADD_FAILURE() << text; };
    const CheckResult found =
        co_await dynamic_cast<Checkable&>(root->node().driver()).check(std::move(everything));
    EXPECT_EQ(found.data->with_checksum, found.data->clusters);
    co_await root->detach();
    if (!have_qemu_img()) co_return;
    const CommandResult theirs = run_command("qemu-img check -f qcow2 " + path + " 2>&1");
    EXPECT_EQ(theirs.status, 0) << theirs.output;
  }

  // One is made, gone back to, or deleted, whatever there is.
  Task<void> change_snapshots(Node& node) {
    auto& image = dynamic_cast<HasSnapshots&>(node.driver());
    co_await node.drain_begin();
    const unsigned what = random_() % 4;
    if (saved_.empty() || (what < 2 && saved_.size() < 3)) {
      NewSnapshot snapshot;
      snapshot.name = std::to_string(next_snapshot_++);
      saved_.emplace_back(snapshot.name, model_);
      co_await image.create_snapshot(std::move(snapshot));
    } else {
      const auto chosen = saved_.begin() + static_cast<std::ptrdiff_t>(random_() % saved_.size());
      SnapshotSelector which;
      which.name = chosen->first;
      if (what == 2) {
        model_ = chosen->second;
        co_await image.apply_snapshot(std::move(which));
      } else {
        saved_.erase(chosen);
        co_await image.delete_snapshot(std::move(which));
      }
    }
    node.drain_end();
  }

  // Requests of one batch do not overlap, so that the outcome does not depend on their order.
  Task<void> batch_of_requests(Child& root) {
    TaskScope scope;
    const std::uint64_t part = case_.size / 6 / 512 * 512;
    for (std::uint64_t from = 0; from + part <= case_.size; from += part) {
      const std::uint64_t length_limit =
          random_() % 4 == 0 ? part : std::min<std::uint64_t>(part, 70000);
      std::uint64_t start = from + random_() % part;
      std::uint64_t length = 1 + random_() % length_limit;
      if (random_() % 2 == 0) start = start / 512 * 512, length = (length + 511) / 512 * 512;
      length = std::min(length, from + part - start);
      scope.spawn(one_request(root, {GuestOffset(start), length}, random_()));
    }
    co_await scope.join();
  }

  Task<void> one_request(Child& root, GuestRange range, unsigned what) {
    const std::uint64_t cluster = root.limits().cluster_size;
    const auto at = model_.begin() + static_cast<std::ptrdiff_t>(range.start.bytes());
    switch (what % 8) {
      case 0: {
        ZeroFlags flags;
        flags.may_unmap = what / 8 % 2 == 0;
        std::fill_n(at, range.length, std::byte{0});
        co_await root.write_zeroes(range, flags);
        break;
      }
      case 1: {
        // What a discard leaves is the format's choice, so it is looked up afterwards.
        co_await root.discard(range);
        std::vector<std::byte> now(range.length);
        co_await root.read(range.start, IoVec(std::span(now)));
        for (std::uint64_t i = 0; i < range.length; ++i) {
          if (now[i] != at[static_cast<std::ptrdiff_t>(i)] && now[i] != std::byte{0}) {
            ADD_FAILURE() << "discarded byte is neither old nor zero at "
                          << range.start.bytes() + i;
            break;
          }
        }
        std::copy(now.begin(), now.end(), at);
        break;
      }
      case 2:
      case 3:
      case 4: {
        const GuestOffset start = range.start.align_down(cluster);
        const bool inside = start >= range.start;
        const std::uint64_t length = range.length / cluster * cluster;
        if (inside && length > 0) {
          const std::vector<std::byte> bytes = random_bytes(random_, length);
          std::ranges::copy(bytes, at);
          WriteFlags flags;
          flags.compressed = true;
          co_await root.write(start, ConstIoVec(std::span(bytes)), flags);
          break;
        }
        [[fallthrough]];
      }
      default: {
        const std::vector<std::byte> bytes = random_bytes(random_, range.length);
        std::ranges::copy(bytes, at);
        WriteFlags flags;
        flags.fua = what / 8 % 8 == 0;
        co_await root.write(range.start, ConstIoVec(std::span(bytes)), flags);
      }
    }
  }

  Task<void> compare(Child& root) {
    std::vector<std::byte> now(model_.size());
    co_await root.read(GuestOffset(0), IoVec(std::span(now)));
    const auto [a, b] = std::ranges::mismatch(now, model_);
    if (a != now.end()) ADD_FAILURE() << "content differs at byte " << (a - now.begin());
    const std::uint64_t from = random_() % model_.size();
    const std::uint64_t length =
        1 + random_() % std::min<std::uint64_t>(model_.size() - from, 9000);
    std::vector<std::byte> part(length);
    co_await root.read(GuestOffset(from), IoVec(std::span(part)));
    EXPECT_TRUE(
        std::equal(part.begin(), part.end(), model_.begin() + static_cast<std::ptrdiff_t>(from)))
        << "part at " << from << " of " << length << " differs";
  }

  const ModelCase& case_;
  std::mt19937 random_;
  std::vector<std::pair<std::string, std::vector<std::byte>>> saved_;  // name, content
  unsigned next_snapshot_ = 1;

 public:
  std::vector<std::byte> model_;
};

class Qcow2Model : public testing::TestWithParam<ModelCase> {};

TEST_P(Qcow2Model, HoldsWhatWasWritten) {
  const ModelCase& c = GetParam();
  const unsigned first = number_from_environment("VISE_SEED");
  for (unsigned seed = first; seed < first + number_from_environment("VISE_RUNS"); ++seed) {
    SCOPED_TRACE("VISE_SEED=" + std::to_string(seed));
    TemporaryFolder folder;
    const std::string path = folder.file("image.qcow2");
    const std::string base = c.backing ? folder.file("base.raw") : "";
    Value::Dict options;
    for (const auto& [name, value] : c.options) options.set(name, value);
    if (c.backing) options.set("backing_file", "base.raw"), options.set("backing_fmt", "raw");
    write_file(path, new_image(options, c.size));

    Twin twin(c, seed);
    {
      Context context;
      Graph graph(context);
      context.loop().run(twin.run(graph, path, base));
    }
    if (have_qemu_img()) {
      write_file(folder.file("model.raw"), twin.model_);
      const CommandResult compared =
          run_command("qemu-img compare -f qcow2 -F raw " + path + " " + folder.file("model.raw"));
      EXPECT_EQ(compared.status, 0) << compared.output;
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Images, Qcow2Model,
    testing::Values(
        ModelCase{"Default", {}, 3u << 20},
        ModelCase{"SmallestClusters", {{"cluster_size", "512"}}, 300 * 512},
        ModelCase{"FourKiB", {{"cluster_size", "4k"}}, 1u << 20},
        ModelCase{"FourKiBZstd", {{"cluster_size", "4k"}, {"compression_type", "zstd"}}, 1u << 20},
        ModelCase{"TwoMiB", {{"cluster_size", "2M"}}, 12u << 20},
        ModelCase{"PartialLastCluster", {{"compression_type", "zstd"}}, (2u << 20) + 512 * 7},
        ModelCase{"Version2", {{"compat", "0.10"}, {"cluster_size", "4k"}}, 1u << 20},
        ModelCase{"RefcountBits1",
                  {{"refcount_bits", "1"}, {"cluster_size", "4k"}},
                  1u << 20,
                  false,
                  false},
        ModelCase{"RefcountBits64", {{"refcount_bits", "64"}, {"cluster_size", "512"}}, 256u << 10},
        ModelCase{"ExtendedL2", {{"extended_l2", "on"}, {"cluster_size", "16k"}}, 2u << 20},
        ModelCase{"Backing", {{"cluster_size", "4k"}}, 1u << 20, true},
        ModelCase{"BackingVersion2", {{"compat", "0.10"}, {"cluster_size", "4k"}}, 1u << 20, true},
        ModelCase{
            "BackingExtendedL2", {{"extended_l2", "on"}, {"cluster_size", "64k"}}, 3u << 20, true},
        ModelCase{
            "Preallocated", {{"preallocation", "metadata"}, {"cluster_size", "4k"}}, 1u << 20}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace vise::qcow2
