// Power failures and failing disks while a damaged image is repaired: whatever has been written,
// disk and snapshots read as before, and the next repair makes the image sound.
#include <gtest/gtest.h>

#include <random>

#include "crash/disk.h"
#include "crash/replay.h"
#include "crash/snapshot_rig.h"
#include "vise/error.h"
#include "vise/image_operations.h"
#include "vise/util/endian.h"

namespace vise::crash {
namespace {

using Random = std::mt19937_64;

constexpr std::uint64_t cluster_size = 512;
constexpr std::uint64_t disk_size = 100 << 10;
constexpr std::uint64_t offset_mask = 0xfffffffffffe00;
constexpr std::uint64_t copied = std::uint64_t{1} << 63;

std::uint64_t get64(const Image& image, std::uint64_t offset) {
  std::array<std::byte, 8> bytes;
  image.read(offset, bytes);
  return load_be<std::uint64_t>(bytes.data());
}

template <class T>
void put(Image& image, std::uint64_t offset, T value) {
  std::array<std::byte, sizeof(T)> bytes;
  store_be(bytes.data(), value);
  image.write(offset, bytes);
}

// Where the 16-bit count of a cluster lies; 0 if there is no block for it.
std::uint64_t count_offset(const Image& image, std::uint64_t cluster) {
  constexpr std::uint64_t per_block = cluster_size / 2;
  const std::uint64_t block = get64(image, get64(image, 48) + cluster / per_block * 8);
  return block == 0 ? 0 : block + cluster % per_block * 2;
}

std::uint16_t count_of(const Image& image, std::uint64_t cluster) {
  std::array<std::byte, 2> bytes;
  image.read(count_offset(image, cluster), bytes);
  return load_be<std::uint16_t>(bytes.data());
}

template <class F>
void change_counts(Image& image, Random& random, F change) {
  for (std::uint64_t cluster = 1; cluster < image.size() / cluster_size; ++cluster) {
    const std::uint64_t place = count_offset(image, cluster);
    if (place == 0 || random() % 3 != 0) continue;
    put(image, place, static_cast<std::uint16_t>(change(count_of(image, cluster))));
  }
}

// Of tables and clusters of the active tree.
void change_copied(Image& image, Random& random) {
  std::array<std::byte, 4> size;
  image.read(36, size);
  const std::uint64_t l1 = get64(image, 40);
  for (std::uint64_t i = 0; i < load_be<std::uint32_t>(size.data()); ++i) {
    const std::uint64_t l1_entry = get64(image, l1 + i * 8);
    const std::uint64_t table = l1_entry & offset_mask;
    if (table == 0) continue;
    if (random() % 2 == 0) put(image, l1 + i * 8, l1_entry ^ copied);
    for (std::uint64_t k = 0; k < cluster_size / 8; ++k) {
      const std::uint64_t entry = get64(image, table + k * 8);
      const bool is_standard = (entry & offset_mask) != 0 && (entry >> 62 & 1) == 0;
      if (is_standard && random() % 3 == 0) put(image, table + k * 8, entry ^ copied);
    }
  }
}

void set_dirty(Image& image) { put(image, 72, get64(image, 72) | 1); }

void break_block(Image& image) {
  const std::uint64_t table = get64(image, 48);
  put(image, table, get64(image, table) + 8);  // not where a cluster begins
}

void break_table(Image& image) { put(image, 48, std::uint64_t{1} << 40); }

struct Damage {
  const char* name;
  void (*make)(Image&, Random&);
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }  // NOLINT

const Damage damages[] = {
    // (Those with a count of 1 carry a flag that says so.)
    {"leaks",
     [](Image& image, Random& random) {
       change_counts(image, random, [](unsigned count) { return count == 1 ? count : count + 1; });
     }},
    {"low_counts",
     [](Image& image, Random& random) {
       change_counts(image, random, [](unsigned count) { return count > 0 ? count - 1 : 0; });
     }},
    {"any_counts",
     [](Image& image, Random& random) {
       change_counts(image, random, [&](unsigned) { return random() % 4; });
     }},
    {"copied_flags", change_copied},
    {"all_of_it",
     [](Image& image, Random& random) {
       change_counts(image, random, [&](unsigned) { return random() % 4; });
       change_copied(image, random);
       set_dirty(image);
     }},
    {"broken_block", [](Image& image, Random&) { break_block(image); }},
    {"broken_table",
     [](Image& image, Random& random) {
       change_copied(image, random);
       break_table(image);
     }},
};

class RepairCrash : public testing::TestWithParam<Damage>, protected SnapshotRig {
 protected:
  RepairCrash() : SnapshotRig(Shape{"damaged", cluster_size, disk_size, Value::Dict()}) {}

  /// A sound image with snapshots and clusters of every kind.
  Image prepare() { return SnapshotRig::prepare(1, Sizes::stay); }

  /// Leaves the image in `disk`.
  CheckResult check(Disk& disk, Repair repair) { return run_on(disk, check_image(repair)); }

  /// Empty, or what is wrong with an image whose repair was cut off.
  std::string examine(const Image& image, const ImageContent& content) {
    if (!(read(image) == content)) return "does not read as before";
    Clock clock;
    Disk disk(clock, image, {});
    const CheckResult found = check(disk, Repair::none);
    if (found.corruptions > corruptions_before_) return "has become worse";
    const CheckResult left = check(disk, Repair::all);
    if (left.corruptions + left.leaks + left.check_errors > 0) return "is not sound when repaired";
    if (!(read(disk.image()) == content)) return "does not read as before when repaired";
    return {};
  }

  std::uint64_t corruptions_before_ = 0;

 private:
  Task<CheckResult> check_image(Repair repair) {
    std::unique_ptr<Child> root = co_await open(repair != Repair::none, OpenPurpose::check);
    CheckRequest request;
    request.repair = repair;
    CheckResult result;
    std::exception_ptr failure;
    try {
      result = co_await dynamic_cast<Checkable&>(root->node().driver()).check(std::move(request));
    } catch (...) {
      failure = std::current_exception();
    }
    co_await end_session(std::move(root), failure);
    co_return result;
  }
};

TEST_P(RepairCrash, APowerFailureLosesNothing) {
  const Image sound = prepare();
  const ImageContent content = read(sound);
  std::uint64_t states = 0;
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    Random random(seed);
    Image start = sound;
    GetParam().make(start, random);
    ASSERT_TRUE(read(start) == content);
    Clock clock;
    Disk disk(clock, start, {});
    corruptions_before_ = check(disk, Repair::none).corruptions;
    const CheckResult result = check(disk, Repair::all);
    ASSERT_GT(result.corruptions_fixed + result.leaks_fixed, 0U);
    ASSERT_EQ(result.corruptions + result.leaks + result.check_errors, 0U);
    std::string problem;
    const Effort effort{.moments_per_flush = 4, .subsets_per_moment = 8};
    for_each_state(start, disk.log(), clock.now(), effort, random, [&](const State& state) {
      ++states;
      problem = examine(state.image, content);
      if (!problem.empty()) problem = state.description + ": " + problem;
      return problem.empty();
    });
    ASSERT_EQ(problem, "") << "seed " << seed;
  }
  std::cout << states << " states\n";
}

TEST_P(RepairCrash, AFailingRequestLosesNothing) {
  const Image sound = prepare();
  const ImageContent content = read(sound);
  Image start = sound;
  Random random(9);
  GetParam().make(start, random);
  Clock quiet_clock;
  Disk damaged(quiet_clock, start, {});
  corruptions_before_ = check(damaged, Repair::none).corruptions;
  for (const auto target : {Disk::Fault::Target::write, Disk::Fault::Target::flush}) {
    for (std::uint64_t number = 1;; ++number) {
      Clock clock;
      Disk disk(clock, start, {});
      disk.set_fault(Disk::Fault{.target = target, .number = number});
      try {
        check(disk, Repair::all);
      } catch (const Error&) {
        // As it must.
      }
      ASSERT_EQ(examine(disk.image(), content), "") << "request " << number;
      if (!disk.fault_happened()) break;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Qcow2, RepairCrash, testing::ValuesIn(damages),
                         [](const testing::TestParamInfo<Damage>& test) {
                           return test.param.name;
                         });

}  // namespace
}  // namespace vise::crash
