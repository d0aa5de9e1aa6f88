// Persistent dirty bitmaps and power failures: whatever state an image is left in, a bitmap that it
// offers as valid must cover every sector that differs from when the bitmap was made. Bitmaps may
// be lost or inconsistent after a crash, but never wrong.
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <random>
#include <utility>

#include "crash/configs.h"
#include "graph/bitmaps.h"
#include "vise/buffer.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::crash {
namespace {

constexpr unsigned requests_per_part = 32;
constexpr unsigned states_per_resumption = 40;

/// What a later look at the image is held against.
struct Memory {
  std::vector<Buffer> content;    // of each window when "rec" was made
  std::vector<std::byte> frozen;  // the bits of the disabled bitmap "off"
};

/// An image without bitmaps and where a guest writes to it. Made by a Rig that is gone afterwards:
/// there is one event loop at a time.
struct Blank {
  explicit Blank(const Config& config) {
    Rig rig(config);
    image = rig.create();
    size = rig.size();
    windows = rig.windows();
  }
  Image image;
  std::uint64_t size = 0;
  std::vector<GuestRange> windows;
};

class BitmapRig {
 public:
  explicit BitmapRig(Config config)
      : config_(std::move(config)), blank_(config_), graph_(context_) {
    context_.drivers().add(disk_type_);
    graph_.on_warning = [](const std::string&) {};
  }
  ~BitmapRig() { context_.loop().run(graph_.close_all()); }

  /// Empty, or what is wrong.
  std::string crash_and_examine(std::uint64_t seed) {
    Clock clock;
    Memory memory;
    const Image start = prepare(seed, memory);
    Disk disk(clock, start,
              {.seed = seed, .usual_delay = 3, .forget_flushes = config_.forget_flushes});
    std::string problem = run_guest(disk, seed, Parts::all);
    if (problem.empty()) problem = examine(disk.image(), memory, Expected::valid);
    if (!problem.empty()) return "after a clean end: " + problem;
    std::mt19937_64 random(seed);
    const auto examine_state = [&](const State& state) {
      problem = examine(state.image, memory, Expected::anything);
      if (problem.empty() && random() % states_per_resumption == 0) {
        problem = go_on(state.image, memory, random());
      }
      if (!problem.empty()) problem = fmt::format("{}: {}", state.description, problem);
      return problem.empty();
    };
    for_each_state(start, disk.log(), clock.now(), {}, random, examine_state);
    return problem;
  }

  std::string fail_each(Disk::Fault fault, std::uint64_t seed) {
    Memory memory;
    const Image start = prepare(seed, memory);
    for (fault.number = 1;; ++fault.number) {
      Clock clock;
      Disk disk(clock, start, {.seed = seed});
      disk.set_fault(fault);
      run_guest(disk, seed, Parts::all);
      const std::string problem = examine(disk.image(), memory, Expected::anything);
      if (!problem.empty()) return fmt::format("request {} fails: {}", fault.number, problem);
      if (!disk.fault_happened()) return {};
    }
  }

  unsigned states() const { return states_; }
  unsigned valid() const { return valid_; }

 private:
  enum class Parts { one, all };
  enum class Expected { anything, valid };

  Task<std::unique_ptr<Child>> open(bool read_only, OpenPurpose purpose) {
    Value::Dict disk;
    disk.set("driver", "crash-disk");
    OpenRequest request;
    request.options.set("driver", "qcow2");
    request.options.set("discard", "unmap");
    request.options.set("file", std::move(disk));
    request.defaults.read_only = read_only;
    request.defaults.purpose = purpose;
    return graph_.open_root(std::move(request));
  }

  // Four requests at a time; throws what the first one that fails throws.
  Task<void> write_somewhere(Child& root, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    TaskScope scope;
    for (int i = 0; i < 4; ++i) scope.spawn(send_requests(root, random));
    co_await scope.join();
  }

  Task<void> send_requests(Child& root, std::mt19937_64& random) {
    for (unsigned sent = 0; sent < requests_per_part / 4; ++sent) {
      const GuestRange window = blank_.windows[random() % blank_.windows.size()];
      const std::uint64_t sectors = window.length / sector_size;
      const std::uint64_t first = random() % sectors;
      const std::uint64_t most = 3 * config_.cluster_size / sector_size;
      const std::uint64_t count = 1 + random() % std::min(most, sectors - first);
      GuestRange range{window.start + first * sector_size, count * sector_size};
      const std::uint64_t kind = random() % 10;
      if (kind == 0) {
        co_await root.flush();
      } else if (kind == 1) {
        co_await root.write_zeroes(range, {.may_unmap = random() % 2 == 0});
      } else if (kind == 2) {
        co_await root.discard(range);
      } else {
        if (kind < 6) range = {range.start.align_down(config_.cluster_size), config_.cluster_size};
        const bool compressed = kind < 6 && range.ends_by(blank_.size);
        if (!range.ends_by(blank_.size)) range.length = blank_.size - range.start.bytes();
        Buffer buffer(range.length);
        fill(buffer, range.start.bytes() / sector_size, ++contents_);
        co_await root.write(range.start, ConstIoVec(buffer.span()), {.compressed = compressed});
      }
    }
  }

  Task<void> read_content(Child& root, std::vector<Buffer>& content) {
    for (const GuestRange& window : blank_.windows) {
      Buffer buffer(window.length);
      co_await root.read(window.start, IoVec(buffer.span()));
      content.push_back(std::move(buffer));
    }
  }

  // An image with a bitmap that records and one that does not.
  Image prepare(std::uint64_t seed, Memory& memory) {
    Clock clock;
    Disk disk(clock, blank_.image, {});
    disk_type_.disk = &disk;
    context_.loop().run(make_bitmaps(seed, memory));
    return disk.image();
  }

  Task<void> make_bitmaps(std::uint64_t seed, Memory& memory) {
    std::unique_ptr<Child> root = co_await open(false, OpenPurpose::io);
    Node& node = root->node();
    NodeBitmap& off = add_bitmap(node, {.name = "off", .granularity = 512, .persistent = true});
    co_await write_somewhere(*root, seed + 1);
    disable_bitmap(node, "off");
    memory.frozen.resize(off.bits.serialized_size());
    off.bits.save(0, memory.frozen);
    add_bitmap(node, {.name = "rec", .granularity = 4096, .persistent = true});
    co_await read_content(*root, memory.content);
    co_await root->detach();
  }

  // Writes, with the image becoming read-only and a bitmap going in between.
  std::string run_guest(Disk& disk, std::uint64_t seed, Parts parts) {
    disk_type_.disk = &disk;
    try {
      context_.loop().run(use_image(seed, parts));
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  }

  Task<void> use_image(std::uint64_t seed, Parts parts) {
    std::unique_ptr<Child> root = co_await open(false, OpenPurpose::io);
    std::exception_ptr failure;
    try {
      co_await write_somewhere(*root, seed);
      if (parts == Parts::all) co_await change_bitmaps(*root, seed);
    } catch (...) {
      failure = std::current_exception();
    }
    co_await root->detach();
    if (failure) std::rethrow_exception(failure);
  }

  Task<void> change_bitmaps(Child& root, std::uint64_t seed) {
    Node& node = root.node();
    Permissions reading = root.permissions();
    const Permissions writing = reading;
    reading.uses = Permission::consistent_read;
    co_await root.set_permissions(reading);
    std::exception_ptr failure;
    try {
      co_await graph_.reopen(node, true);
      co_await graph_.reopen(node, false);
    } catch (...) {
      failure = std::current_exception();
    }
    if (!node.read_only()) {
      co_await root.set_permissions(writing);
      co_await write_somewhere(root, seed + 4);
    }
    if (failure) std::rethrow_exception(failure);
    co_await write_somewhere(root, seed + 2);
    add_bitmap(node, {.name = "new", .granularity = 512, .persistent = true, .enabled = false});
    merge_bitmap(node, "new", get_bitmap(node, "rec"));
    if (seed % 2 == 0) co_await remove_bitmap(node, "off");
    co_await write_somewhere(root, seed + 3);
  }

  std::string go_on(const Image& image, const Memory& memory, std::uint64_t seed) {
    Clock clock;
    Disk disk(clock, image, {});
    std::string problem = run_guest(disk, seed, Parts::one);
    if (problem.empty()) problem = examine(disk.image(), memory, Expected::anything);
    return problem.empty() ? problem : "going on after that: " + problem;
  }

  std::string examine(const Image& image, const Memory& memory, Expected expected) {
    Clock clock;
    Disk disk(clock, image, {});
    disk_type_.disk = &disk;
    ++states_;
    try {
      return context_.loop().run(examine_bitmaps(memory, expected));
    } catch (const Error& error) {
      return error.what();
    }
  }

  Task<std::string> examine_bitmaps(const Memory& memory, Expected expected) {
    std::unique_ptr<Child> checked = co_await open(true, OpenPurpose::check);
    std::string problem = co_await guarded(check_metadata(*checked));
    co_await checked->detach();
    if (!problem.empty()) co_return problem;
    std::unique_ptr<Child> root = co_await open(true, OpenPurpose::io);
    problem = co_await guarded(compare_bitmaps(*root, memory, expected));
    co_await root->detach();
    co_return problem;
  }

  // What goes wrong as text, so that the image can be closed.
  static Task<std::string> guarded(Task<std::string> task) {
    try {
      co_return co_await std::move(task);
    } catch (const Error& error) {
      co_return error.what();
    }
  }

  static Task<std::string> check_metadata(Child& root) {
    auto& checkable = dynamic_cast<Checkable&>(root.node().driver());
    const CheckResult found = co_await checkable.check(CheckRequest());
    if (found.corruptions + found.check_errors == 0) co_return std::string();
    co_return fmt::format("check: {} corruptions, {} errors", found.corruptions,
                          found.check_errors);
  }

  Task<std::string> compare_bitmaps(Child& root, const Memory& memory, Expected expected) {
    std::vector<Buffer> content;
    co_await read_content(root, content);
    const BitmapSet& set = bitmaps_of(root.node());
    std::string problem;
    const NodeBitmap* off = set.find("off");
    if (off != nullptr && !off->inconsistent) {
      std::vector<std::byte> bits(off->bits.serialized_size());
      off->bits.save(0, bits);
      if (bits != memory.frozen || off->enabled) problem = "the disabled bitmap has changed";
    }
    const NodeBitmap* rec = set.find("rec");
    if (rec != nullptr && !rec->inconsistent) {
      ++valid_;
      problem += compare(*rec, memory.content, content);
      if (!rec->enabled) problem += "the bitmap no longer records";
    } else if (expected == Expected::valid) {
      problem = "the bitmap was lost";
    }
    co_return problem;
  }

  std::string compare(const NodeBitmap& bitmap, const std::vector<Buffer>& before,
                      const std::vector<Buffer>& now) const {
    for (std::size_t w = 0; w < now.size(); ++w) {
      for (std::uint64_t at = 0; at < now[w].size(); at += sector_size) {
        const bool same =
            std::equal(now[w].data() + at, now[w].data() + at + sector_size, before[w].data() + at);
        const GuestOffset offset = blank_.windows[w].start + at;
        if (same || bitmap.bits.is_dirty(offset)) continue;
        return fmt::format("the sector at {} has changed, and bitmap '{}' does not know",
                           offset.bytes(), bitmap.name);
      }
    }
    return {};
  }

  const Config config_;
  const Blank blank_;
  Context context_;
  DiskDriverType disk_type_;
  Graph graph_;
  Content contents_ = 0;
  unsigned states_ = 0;
  unsigned valid_ = 0;  // in which the bitmap was offered as valid
};

std::vector<Config> configs() {
  std::vector<Config> result;
  for (const std::uint64_t cluster : {512u, 4096u, 65536u}) {
    result.push_back(qcow2_config(cluster, "zlib"));
  }
  return result;
}

class CrashBitmaps : public testing::TestWithParam<Config> {};

TEST_P(CrashBitmaps, ABitmapIsNeverTrustedWronglyAfterAPowerFailure) {
  const Settings settings = Settings::from_environment();
  const unsigned runs = settings.runs != 0 ? settings.runs : 6;
  BitmapRig rig(GetParam());
  for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
    ASSERT_EQ(rig.crash_and_examine(seed), "") << "seed " << seed;
  }
  std::cout << rig.states() << " states, " << rig.valid() << " with a valid bitmap\n";
}

TEST_P(CrashBitmaps, ABitmapIsNeverTrustedWronglyAfterAFailedRequest) {
  const Settings settings = Settings::from_environment();
  for (const auto target : {Disk::Fault::Target::write, Disk::Fault::Target::flush}) {
    for (const bool all_later : {false, true}) {
      BitmapRig rig(GetParam());
      ASSERT_EQ(rig.fail_each({.target = target, .all_later = all_later}, settings.seed), "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Qcow2, CrashBitmaps, testing::ValuesIn(configs()), config_name);

// Or the test examines too little.
TEST(CrashBitmapsOnABadDisk, SomethingIsTrustedWrongly) {
  Config config = qcow2_config(512, "zlib");
  config.forget_flushes = true;
  BitmapRig rig(config);
  for (std::uint64_t seed = 1; seed < 50; ++seed) {
    const std::string problem = rig.crash_and_examine(seed);
    if (problem.find("does not know") != std::string::npos) return;
  }
  FAIL() << "a disk without barriers made no bitmap wrong";
}

}  // namespace
}  // namespace vise::crash
