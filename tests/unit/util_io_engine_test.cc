// Both I/O engines against the same table of operations.
#include "util/io_engine.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>
#include <vector>

#include "vise/buffer.h"
#include "vise/sync.h"

namespace vise {
namespace {

enum class Engine { io_uring, threads };

class IoEngineTest : public testing::TestWithParam<Engine> {
 protected:
  IoEngineTest() {
    threads_ = make_io_threads(loop_);
    if (GetParam() == Engine::io_uring) uring_ = make_io_uring(loop_, *threads_);
    char name[] = "/tmp/vise-io-engine-XXXXXX";
    fd_ = mkostemp(name, O_CLOEXEC);
    unlink(name);
  }
  ~IoEngineTest() override { close(fd_); }

  void SetUp() override {
    ASSERT_GE(fd_, 0);
    if (GetParam() == Engine::threads) return;
    if (!uring_) GTEST_SKIP() << "built without io_uring";
    std::byte byte{};  // the first request makes the ring
    loop_.run(uring_->read(fd_, std::span(&byte, 1), 0));
    if (uring_->name() != "io_uring") GTEST_SKIP() << "the kernel refuses io_uring";
  }

  IoEngine& engine() { return uring_ ? *uring_ : *threads_; }

  EventLoop loop_;
  std::unique_ptr<IoEngine> threads_;
  std::unique_ptr<IoEngine> uring_;
  int fd_ = -1;
};

INSTANTIATE_TEST_SUITE_P(Engines, IoEngineTest, testing::Values(Engine::io_uring, Engine::threads),
                         [](const auto& param) {
                           return param.param == Engine::io_uring ? "io_uring" : "threads";
                         });

std::vector<std::byte> random_bytes(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::size_t open_rings() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone) == "anon_inode:[io_uring]" ? 1 : 0;
  }
  return count;
}

TEST(IoUringEngine, MakesARingForTheFirstRequestThatIsForIt) {
  EventLoop loop;
  const auto threads = make_io_threads(loop);
  const auto uring = make_io_uring(loop, *threads);
  if (!uring) GTEST_SKIP() << "built without io_uring";
  char name[] = "/tmp/vise-io-engine-XXXXXX";
  const int fd = mkostemp(name, O_CLOEXEC);
  unlink(name);
  std::byte byte{};
  loop.run(threads->write(fd, std::span<const std::byte>(&byte, 1), 0));
  loop.run(uring->sync(fd));
  loop.run(uring->read(fd, std::span(&byte, 1), 0, IoEngine::Medium::page_cache));
  EXPECT_EQ(open_rings(), 0U);
  loop.run(uring->read(fd, std::span(&byte, 1), 0));
  EXPECT_EQ(open_rings(), uring->name() == "io_uring" ? 1U : 0U);
  close(fd);
}

TEST_P(IoEngineTest, WhatIsWrittenIsRead) {
  const auto written = random_bytes(300'000, 1);
  loop_.run(engine().write(fd_, std::span(written), 12345));
  std::vector<std::byte> read(written.size());
  EXPECT_EQ(loop_.run(engine().read(fd_, std::span(read), 12345)), read.size());
  EXPECT_EQ(read, written);
}

TEST_P(IoEngineTest, MoreSegmentsThanOneSystemCallTakesAreTransferredWhole) {
  const auto written = random_bytes(5000 * 3, 2);
  std::vector<std::byte> source = written;
  std::vector<IoSegment> segments;
  for (std::size_t i = 0; i < source.size(); i += 3) {
    segments.push_back(std::span(source).subspan(i, 3));
  }
  loop_.run(engine().write(fd_, ConstIoVec(std::span<const IoSegment>(segments)), 7));
  std::fill(source.begin(), source.end(), std::byte{0});
  const IoVec target{std::span<const IoSegment>(segments)};
  EXPECT_EQ(loop_.run(engine().read(fd_, target.slice(1), 8)), written.size() - 1);
  EXPECT_TRUE(std::equal(source.begin() + 1, source.end(), written.begin() + 1));
}

TEST_P(IoEngineTest, AReadBeyondTheEndOfTheFileIsShort) {
  const auto written = random_bytes(1000, 3);
  loop_.run(engine().write(fd_, std::span(written), 0));
  for (const auto medium : {IoEngine::Medium::device, IoEngine::Medium::page_cache}) {
    std::vector<std::byte> read(4096);
    EXPECT_EQ(loop_.run(engine().read(fd_, std::span(read), 600, medium)), 400u);
    EXPECT_TRUE(std::equal(read.begin(), read.begin() + 400, written.begin() + 600));
    EXPECT_EQ(loop_.run(engine().read(fd_, std::span(read), 5000, medium)), 0u);
  }
}

Task<void> read_everywhere(IoEngine& engine, int fd, std::span<const std::byte> expected) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const std::size_t offset = random() % expected.size();
    std::vector<std::byte> data(std::min<std::size_t>(random() % 5000, expected.size() - offset));
    const std::uint64_t length =
        co_await engine.read(fd, std::span(data), offset, IoEngine::Medium::page_cache);
    EXPECT_EQ(length, data.size());
    EXPECT_TRUE(std::equal(data.begin(), data.end(), expected.begin() + offset));
  }
}

TEST_P(IoEngineTest, CachedAndUncachedDataReadTheSame) {
  const auto written = random_bytes(2 << 20, 6);
  loop_.run(engine().write(fd_, std::span(written), 0));
  loop_.run(engine().sync(fd_));
  // Every second stretch has to come from the disk.
  for (off_t offset = 0; offset < 2 << 20; offset += 64 << 10) {
    posix_fadvise(fd_, offset, 32 << 10, POSIX_FADV_DONTNEED);
  }
  loop_.run(read_everywhere(engine(), fd_, written));
}

Task<void> read_until(IoEngine& engine, int fd, const bool& stop) {
  std::vector<std::byte> data(512);
  while (!stop) {
    const std::uint64_t length =
        co_await engine.read(fd, std::span(data), 0, IoEngine::Medium::page_cache);
    EXPECT_EQ(length, data.size());
  }
}

Task<void> stop_later(bool& stop) {
  co_await EventLoop::current().sleep(std::chrono::milliseconds(1));
  stop = true;
}

TEST_P(IoEngineTest, CachedReadsDoNotStarveTheLoop) {
  const auto written = random_bytes(512, 8);
  loop_.run(engine().write(fd_, std::span(written), 0));
  bool stop = false;
  std::vector<Task<void>> tasks;
  tasks.push_back(stop_later(stop));
  tasks.push_back(read_until(engine(), fd_, stop));
  loop_.run(when_all(std::move(tasks)));
}

TEST_P(IoEngineTest, ADirectReadEndsAtAnUnalignedEndOfFile) {
  const auto written = random_bytes(5000, 4);
  loop_.run(engine().write(fd_, std::span(written), 0));
  if (fcntl(fd_, F_SETFL, O_DIRECT) != 0) GTEST_SKIP() << "no O_DIRECT in /tmp";
  Buffer buffer(8192);
  EXPECT_EQ(loop_.run(engine().read(fd_, buffer.span(), 0)), written.size());
  EXPECT_EQ(std::memcmp(buffer.data(), written.data(), written.size()), 0);
}

TEST_P(IoEngineTest, FailuresCarryTheErrno) {
  std::vector<std::byte> bytes(10);
  try {
    loop_.run(engine().read(-1, std::span(bytes), 0));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EBADF);
    EXPECT_STREQ(error.what(), "Bad file descriptor");
  }
  EXPECT_THROW(loop_.run(engine().write(-1, std::span(bytes), 0)), Error);
  EXPECT_THROW(loop_.run(engine().sync(-1)), Error);
  EXPECT_EQ(loop_.run(engine().allocate(-1, 0, 0, 1)), EBADF);
}

TEST_P(IoEngineTest, ADurableWriteAndSyncSucceed) {
  const auto written = random_bytes(4096, 5);
  loop_.run(engine().write(fd_, std::span(written), 0, IoEngine::Durability::data_sync));
  loop_.run(engine().sync(fd_));
}

TEST_P(IoEngineTest, AllocateExtendsTheFile) {
  ASSERT_EQ(loop_.run(engine().allocate(fd_, 0, 0, 1 << 20)), 0);
  struct stat status{};
  fstat(fd_, &status);
  EXPECT_EQ(status.st_size, 1 << 20);
}

TEST_P(IoEngineTest, CallGivesWhatTheFunctionReturned) {
  const int fd = fd_;
  EXPECT_EQ(loop_.run(engine().call([fd] { return ftruncate(fd, 4096); })), 0);
  EXPECT_EQ(loop_.run(engine().call([fd] { return lseek(fd, 0, SEEK_END); })), 4096);
}

Task<void> write_and_read_back(IoEngine& engine, int fd, unsigned index) {
  const auto written = random_bytes(512, index);
  co_await engine.write(fd, std::span(written), index * 512ull);
  std::vector<std::byte> read(512);
  const std::uint64_t length = co_await engine.read(fd, std::span(read), index * 512ull);
  EXPECT_EQ(length, 512u);
  EXPECT_EQ(read, written);
}

Task<void> many_at_once(IoEngine& engine, int fd) {
  TaskScope scope;
  for (unsigned index = 0; index < 3000; ++index) {
    scope.spawn(write_and_read_back(engine, fd, index));
  }
  co_await scope.join();
}

TEST_P(IoEngineTest, MoreRequestsThanTheEngineTakesAtOnceAllComplete) {
  loop_.run(many_at_once(engine(), fd_));
}

Task<void> fill(IoEngine& engine, int fd, std::byte value) {
  const std::vector<std::byte> data(256 << 10, value);
  co_await engine.write(fd, std::span(data), 0, IoEngine::Durability::cached,
                        IoEngine::Medium::page_cache);
}

Task<void> fill_both(IoEngine& engine, int one, int other) {
  TaskScope scope;
  for (int value = 0; value < 100; ++value) {
    scope.spawn(fill(engine, one, std::byte(value)));
    scope.spawn(fill(engine, other, std::byte(value + 100)));
  }
  co_await scope.join();
}

// Threads let one write at a time into a file, in the order they came.
TEST(IoThreads, BufferedWritesToOneFileHappenInOrder) {
  EventLoop loop;
  const auto engine = make_io_threads(loop);
  const int one = memfd_create("one", MFD_CLOEXEC);
  const int other = memfd_create("other", MFD_CLOEXEC);
  loop.run(fill_both(*engine, one, other));
  std::vector<std::byte> read(256 << 10);
  ASSERT_EQ(pread(one, read.data(), read.size(), 0), 256 << 10);
  EXPECT_EQ(std::count(read.begin(), read.end(), std::byte(99)), 256 << 10);
  ASSERT_EQ(pread(other, read.data(), read.size(), 0), 256 << 10);
  EXPECT_EQ(std::count(read.begin(), read.end(), std::byte(199)), 256 << 10);
  close(one);
  close(other);
}

}  // namespace
}  // namespace vise
