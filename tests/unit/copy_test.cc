// The copy engine between memory nodes whose requests end in random order.
#include "copy/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "tests/unit/memory_driver.h"
#include "vise/filter.h"

namespace vise::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t MiB = 1 << 20;

// Lets every request wait for a random number of turns of the loop, before or after it is done.
class ShuffleFilter final : public Filter {
 public:
  ShuffleFilter(std::unique_ptr<Child> child, unsigned seed)
      : Filter(std::move(child)), random_(seed) {}

  Task<void> read(GuestOffset offset, IoVec data) override {
    co_await Filter::read(offset, data);
    co_await wait();
  }
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    co_await Filter::write(offset, data, flags);
    co_await wait();
  }

 private:
  Task<void> wait() {
    for (unsigned turns = random_() % 20; turns > 0; --turns) {
      co_await EventLoop::current().yield();
    }
  }
  std::mt19937 random_;
};

Task<std::unique_ptr<Driver>> open_shuffle(OpenContext& context) {
  const std::optional<Value> seed = context.options().take("seed");
  std::unique_ptr<Child> child = co_await context.open_child("file", EdgeRole::filtered);
  co_return std::make_unique<ShuffleFilter>(std::move(child),
                                            static_cast<unsigned>(seed->as_uint()));
}

const DriverType shuffle_driver = {
    .name = "shuffle", .kind = DriverKind::filter, .open = open_shuffle};

struct Event {
  std::string request;
  std::uint64_t start, length;
  bool operator==(const Event&) const = default;
};

class CopyTest : public GraphTest {
 protected:
  CopyTest() {
    context_.drivers().add(shuffle_driver);
    target_disk_.limits.can_zero = true;
    target_disk_.on_request = [this](const char* request, GuestRange range) {
      if (std::string(request) != "read" && std::string(request) != "flush") {
        events_.push_back({request, range.start.bytes(), range.length});
      }
    };
  }
  ~CopyTest() override {
    for (auto& root : roots_) run(root->detach());
  }

  Child& attach(Value::Dict options) {
    roots_.push_back(open(std::move(options)));
    return *roots_.back();
  }
  Child& attach_shuffled(MemoryDisk& disk, unsigned seed) {
    Value::Dict options;
    options.set("driver", "shuffle");
    options.set("seed", seed);
    options.set("file", memory_options(disk));
    return attach(std::move(options));
  }

  // Random data with holes, zeroed blocks, and an odd size.
  static std::vector<std::byte> random_content(unsigned seed, std::uint64_t size) {
    std::mt19937 random(seed);
    std::vector<std::byte> bytes(size, std::byte{0});
    for (std::uint64_t at = 0; at < size; at += 65536) {
      if (random() % 3 == 0) continue;
      const std::uint64_t end = std::min<std::uint64_t>(size, at + 65536);
      for (std::uint64_t i = at; i < end; i += 4096) {
        if (random() % 2 == 0) bytes[i] = std::byte{static_cast<unsigned char>(random() | 1)};
      }
    }
    return bytes;
  }

  CopyRequest request(Child& source, Child& target) {
    CopyRequest result;
    result.sources = {&source};
    result.target = &target;
    return result;
  }

  MemoryDisk source_disk_, target_disk_;
  std::vector<Event> events_;  // what reached the target, in the order it started
  std::vector<std::unique_ptr<Child>> roots_;
};

TEST_F(CopyTest, TheTargetEqualsTheSource) {
  source_disk_.bytes = random_content(1, 21 * MiB + 512);
  target_disk_.bytes.assign(source_disk_.bytes.size(), std::byte{0xee});
  run(copy(request(attach_shuffled(source_disk_, 1), attach_shuffled(target_disk_, 2))));
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
}

TEST_F(CopyTest, WritesStartInGuestOrderWhateverTheOrderOfCompletion) {
  source_disk_.bytes = random_content(2, 40 * MiB);
  std::vector<Event> first;
  for (unsigned seed = 0; seed < 5; ++seed) {
    events_.clear();
    target_disk_.bytes.assign(source_disk_.bytes.size(), std::byte{0});
    CopyRequest copying =
        request(attach_shuffled(source_disk_, seed), attach_shuffled(target_disk_, seed + 100));
    copying.options.chunks_in_flight = 1 + seed * 3;
    run(copy(std::move(copying)));
    EXPECT_TRUE(std::is_sorted(events_.begin(), events_.end(),
                               [](const Event& a, const Event& b) { return a.start < b.start; }));
    if (seed == 0) first = events_;
    EXPECT_TRUE(events_ == first) << "seed " << seed;
    for (auto& root : roots_) run(root->detach());
    roots_.clear();
  }
  EXPECT_GT(first.size(), 100u);
}

// These nodes keep nothing in files: all is read and written, in the same order and place.
TEST_F(CopyTest, WhatTheHostDoesNotCopyIsReadAndWritten) {
  source_disk_.bytes = random_content(3, 21 * MiB + 512);
  std::vector<Event> usual;
  for (const bool offload : {false, true}) {
    events_.clear();
    target_disk_.bytes.assign(source_disk_.bytes.size(), std::byte{0xee});
    CopyRequest copying =
        request(attach_shuffled(source_disk_, 1), attach_shuffled(target_disk_, 2));
    copying.options.offload = offload;
    run(copy(std::move(copying)));
    EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
    if (!offload) usual = events_;
    EXPECT_TRUE(events_ == usual);
  }
}

TEST_F(CopyTest, ZerosAreNotWrittenToATargetOfZeros) {
  source_disk_.bytes.assign(8 * MiB, std::byte{0});
  source_disk_.bytes[5 * MiB] = std::byte{1};
  target_disk_.bytes.assign(8 * MiB, std::byte{0});
  CopyRequest copying =
      request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)));
  copying.options.target_is_zero = true;
  run(copy(std::move(copying)));
  EXPECT_EQ(events_, (std::vector<Event>{{"write", 5 * MiB, 4096}}));
}

TEST_F(CopyTest, ZerosAreZeroedWhereTheTargetIsUnknown) {
  source_disk_.bytes.assign(2 * MiB, std::byte{0});
  target_disk_.bytes.assign(2 * MiB, std::byte{0xee});
  run(copy(request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)))));
  EXPECT_EQ(events_, (std::vector<Event>{{"zeroes", 0, 2 * MiB}}));
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
}

TEST_F(CopyTest, NothingIsLeftOutWithASparseSizeOfZero) {
  source_disk_.bytes.assign(3 * MiB, std::byte{0});
  target_disk_.bytes.assign(3 * MiB, std::byte{0});
  CopyRequest copying =
      request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)));
  copying.options.sparse_size = 0;
  copying.options.target_is_zero = true;
  run(copy(std::move(copying)));
  EXPECT_EQ(events_, (std::vector<Event>{{"write", 0, 2 * MiB}, {"write", 2 * MiB, MiB}}));
}

TEST_F(CopyTest, UnallocatedStretchesAreNotRead) {
  source_disk_.limits.cluster_size = 65536;
  source_disk_.bytes.assign(64 * MiB, std::byte{0});
  source_disk_.allocated.assign(64 * MiB / 65536, false);
  source_disk_.allocated[3] = true;
  source_disk_.bytes[3 * 65536] = std::byte{7};
  target_disk_.bytes.assign(64 * MiB, std::byte{0});
  CopyRequest copying =
      request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)));
  copying.options.target_is_zero = true;
  run(copy(std::move(copying)));
  EXPECT_EQ(source_disk_.reads, 1u);
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
}

TEST_F(CopyTest, CompressedWritesAreWholeClusters) {
  source_disk_.bytes = random_content(3, 9 * MiB + 4096 + 512);
  target_disk_.limits.cluster_size = 65536;
  target_disk_.limits.can_compress = true;
  target_disk_.bytes.assign(source_disk_.bytes.size(), std::byte{0});
  CopyRequest copying =
      request(attach_shuffled(source_disk_, 5), attach(memory_options(target_disk_)));
  copying.options.compressed = true;
  copying.options.target_is_zero = true;
  run(copy(std::move(copying)));
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
  for (const Event& event : events_) {
    EXPECT_EQ(event.request, "compressed");
    EXPECT_EQ(event.start % 65536, 0u);
    EXPECT_TRUE(event.length % 65536 == 0 ||
                event.start + event.length == target_disk_.bytes.size());
  }
  EXPECT_EQ(target_disk_.compressed_writes, target_disk_.writes);
}

TEST_F(CopyTest, SeveralSourcesBecomeOne) {
  MemoryDisk second;
  source_disk_.bytes = random_content(4, 3 * MiB + 100);
  second.bytes = random_content(5, MiB);
  Child& a = attach(memory_options(source_disk_));
  Child& b = attach(memory_options(second));
  const std::uint64_t start = 3 * MiB + 512;
  target_disk_.bytes.assign(start + MiB, std::byte{0xee});
  CopyRequest copying = request(a, attach(memory_options(target_disk_)));
  copying.sources = {&a, &b};
  run(copy(std::move(copying)));
  std::vector<std::byte> expected = source_disk_.bytes;
  expected.resize(start);
  expected.insert(expected.end(), second.bytes.begin(), second.bytes.end());
  EXPECT_TRUE(target_disk_.bytes == expected);
  run(roots_[1]->detach());
  roots_.erase(roots_.begin() + 1);
}

TEST_F(CopyTest, ATargetThatIsTooSmallIsRefused) {
  source_disk_.bytes.resize(MiB);
  target_disk_.bytes.resize(MiB - 512);
  int code = 0;
  failure(copy(request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)))),
          &code);
  EXPECT_EQ(code, ENOSPC);
  EXPECT_TRUE(events_.empty());
}

TEST_F(CopyTest, AReadErrorNamesItsOffsetAndStopsTheWriting) {
  source_disk_.bytes.assign(32 * MiB, std::byte{1});
  target_disk_.bytes.assign(32 * MiB, std::byte{0});
  source_disk_.on_request = [](const char* request, GuestRange range) {
    if (std::string(request) == "read" && range.start.bytes() == 6 * MiB) {
      throw Error::system_error(EIO);
    }
  };
  int code = 0;
  const std::string text = failure(
      copy(request(attach_shuffled(source_disk_, 6), attach_shuffled(target_disk_, 7))), &code);
  EXPECT_EQ(code, EIO);
  EXPECT_EQ(text, "error while reading at byte 6291456: Input/output error");
  for (const Event& event : events_) EXPECT_LT(event.start, 6 * MiB);
}

TEST_F(CopyTest, AWriteErrorNamesItsOffset) {
  source_disk_.bytes.assign(32 * MiB, std::byte{1});
  target_disk_.bytes.assign(32 * MiB, std::byte{0});
  target_disk_.on_request = [](const char*, GuestRange range) {
    if (range.start.bytes() == 4 * MiB) throw Error::system_error(ENOSPC);
  };
  int code = 0;
  const std::string text = failure(
      copy(request(attach_shuffled(source_disk_, 8), attach_shuffled(target_disk_, 9))), &code);
  EXPECT_EQ(code, ENOSPC);
  EXPECT_EQ(text, "error while writing at byte 4194304: No space left on device");
}

TEST_F(CopyTest, EveryReadAndWriteMayFailOnce) {
  source_disk_.bytes = random_content(6, 5 * MiB);
  target_disk_.bytes.assign(5 * MiB, std::byte{0});
  std::size_t until = 0, seen = 0;
  const auto fail_at = [&](const char*, GuestRange) {
    if (seen++ == until) throw Error::system_error(EIO);
  };
  source_disk_.on_request = fail_at;
  target_disk_.on_request = fail_at;
  Child& source = attach_shuffled(source_disk_, 10);
  Child& target = attach_shuffled(target_disk_, 11);
  for (;; ++until) {
    seen = 0;
    const std::string text = failure(copy(request(source, target)));
    if (seen <= until) {
      EXPECT_EQ(text, "");
      break;
    }
    EXPECT_NE(text.find("Input/output error"), std::string::npos);
  }
  source_disk_.on_request = nullptr;
  target_disk_.on_request = nullptr;
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
}

TEST_F(CopyTest, CancellingEndsItWithECANCELED) {
  source_disk_.bytes.assign(64 * MiB, std::byte{1});
  target_disk_.bytes.assign(64 * MiB, std::byte{0});
  CopyControl control;
  CopyRequest copying =
      request(attach_shuffled(source_disk_, 12), attach_shuffled(target_disk_, 13));
  copying.control = &control;
  copying.on_progress = [&](const CopyProgress& progress) {
    if (progress.done >= 8 * MiB) control.cancel();
  };
  int code = 0;
  failure(copy(std::move(copying)), &code);
  EXPECT_EQ(code, ECANCELED);
  EXPECT_LT(events_.back().start, 40 * MiB);
}

Task<void> resume_later(CopyControl& control, std::vector<Event>& events, std::size_t& seen) {
  // Far more turns than the chunks in flight can take.
  for (int i = 0; i < 2000; ++i) co_await EventLoop::current().yield();
  seen = events.size();
  for (int i = 0; i < 2000; ++i) co_await EventLoop::current().yield();
  EXPECT_EQ(events.size(), seen);
  control.resume();
}

TEST_F(CopyTest, WhilePausedNothingNewStarts) {
  source_disk_.bytes.assign(64 * MiB, std::byte{1});
  target_disk_.bytes.assign(64 * MiB, std::byte{0});
  CopyControl control;
  CopyRequest copying =
      request(attach_shuffled(source_disk_, 14), attach_shuffled(target_disk_, 15));
  copying.control = &control;
  bool paused = false;
  copying.on_progress = [&](const CopyProgress&) {
    if (!paused) control.pause();
    paused = true;
  };
  std::size_t seen = 0;
  std::vector<Task<void>> tasks;
  tasks.push_back(copy(std::move(copying)));
  tasks.push_back(resume_later(control, events_, seen));
  run(when_all(std::move(tasks)));
  EXPECT_LT(seen, 32u);
  EXPECT_TRUE(source_disk_.bytes == target_disk_.bytes);
}

TEST_F(CopyTest, TheRateIsKeptOnAverage) {
  source_disk_.bytes.assign(20 * MiB, std::byte{1});
  target_disk_.bytes.assign(20 * MiB, std::byte{0});
  CopyControl control;
  control.set_rate(2 * MiB);
  struct FakeClock {
    RateLimit::Clock::time_point now{1h};
    static Task<void> sleep(FakeClock* clock, std::chrono::nanoseconds duration) {
      clock->now += duration;
      co_return;
    }
  } clock;
  CopyRequest copying =
      request(attach(memory_options(source_disk_)), attach(memory_options(target_disk_)));
  copying.control = &control;
  copying.clock.now = [&clock] { return clock.now; };
  copying.clock.sleep = [&clock](std::chrono::nanoseconds d) {
    return FakeClock::sleep(&clock, d);
  };
  run(copy(std::move(copying)));
  // Ten chunks of a second each; the first one starts at once.
  EXPECT_EQ(clock.now - RateLimit::Clock::time_point(1h), 9s);
}

TEST_F(CopyTest, ProgressEndsAtTheWhole) {
  source_disk_.bytes = random_content(7, 10 * MiB + 512);
  target_disk_.bytes.assign(source_disk_.bytes.size(), std::byte{0});
  CopyRequest copying =
      request(attach_shuffled(source_disk_, 16), attach_shuffled(target_disk_, 17));
  CopyProgress last;
  copying.on_progress = [&](const CopyProgress& progress) {
    EXPECT_GE(progress.done, last.done);
    last = progress;
  };
  run(copy(std::move(copying)));
  EXPECT_EQ(last.done, source_disk_.bytes.size());
  EXPECT_EQ(last.total, source_disk_.bytes.size());
  EXPECT_LE(last.data_moved, last.done);
}

}  // namespace
}  // namespace vise::test
