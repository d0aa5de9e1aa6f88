// The file driver: requests, holes, zeroing, growth, flushes that fail.
#include "protocol/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <vector>

#include "temporary_file.h"
#include "util/io_engine.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/sync.h"

namespace vise {
namespace {

constexpr std::uint64_t kib = 1024;

enum class Engine { io_uring, threads };

class FileTest : public testing::TestWithParam<Engine> {
 protected:
  std::unique_ptr<FileDriver> open(FileOptions options = {}) {
    options.path = file_.path();
    return FileDriver::open(options, context_.io(), nullptr);
  }
  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }
  void write(Driver& driver, std::uint64_t offset, std::string_view text) {
    run(driver.write(GuestOffset(offset), std::as_bytes(std::span(text)), {}));
  }
  std::string read(Driver& driver, std::uint64_t offset, std::size_t length) {
    std::string text(length, '?');
    run(driver.read(GuestOffset(offset), std::as_writable_bytes(std::span(text))));
    return text;
  }
  Extent map(Driver& driver, std::uint64_t offset, std::uint64_t length,
             MapMode mode = MapMode::precise) {
    return run(driver.map({GuestOffset(offset), length}, mode));
  }
  std::uint64_t allocated_bytes() const {
    struct stat status = {};
    stat(file_.path().c_str(), &status);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  template <class F>
  Error failure_of(F f) {
    try {
      f();
    } catch (const Error& error) {
      return error;
    }
    ADD_FAILURE() << "nothing was thrown";
    return Error(0, "");
  }

  Context context_{{.worker_threads = 1, .io_uring = GetParam() == Engine::io_uring}};
  TemporaryFile file_;
};

INSTANTIATE_TEST_SUITE_P(Engines, FileTest, testing::Values(Engine::io_uring, Engine::threads),
                         [](const auto& engine) {
                           return engine.param == Engine::io_uring ? "io_uring" : "threads";
                         });

TEST_P(FileTest, AnyByteCanBeWrittenAndRead) {
  file_.set_size(100);
  const auto driver = open();
  EXPECT_EQ(driver->size(), 100u);
  write(*driver, 13, "hello");
  EXPECT_EQ(read(*driver, 12, 7), std::string("\0hello\0", 7));
  run(driver->close());
  EXPECT_EQ(file_.content().substr(13, 5), "hello");
}

TEST_P(FileTest, AWriteBehindTheEndMakesTheFileLonger) {
  file_.set_content("abc");
  const auto driver = open();
  write(*driver, 10, "xyz");
  EXPECT_EQ(driver->size(), 13u);
  EXPECT_EQ(read(*driver, 0, 13), std::string("abc\0\0\0\0\0\0\0xyz", 13));
  run(driver->close());
}

TEST_P(FileTest, TheRestOfTheLastBlockReadsAsZeros) {
  file_.set_content("abc");
  const auto driver = open();
  EXPECT_EQ(read(*driver, 0, 8), std::string("abc\0\0\0\0\0", 8));
  run(driver->close());
}

TEST_P(FileTest, ErrorsOfOpeningNameTheFile) {
  EXPECT_EQ(failure_of([&] { open(); }).message(),
            "Could not open '" + file_.path() + "': No such file or directory");
  std::filesystem::create_directory(file_.path());
  EXPECT_EQ(failure_of([&] { open(); }).code(), EISDIR);
  EXPECT_EQ(failure_of([&] { open({.read_only = true}); }).code(), EISDIR);
}

TEST_P(FileTest, AFifoIsRefusedRatherThanWaitedFor) {
  ASSERT_EQ(mkfifo(file_.path().c_str(), 0600), 0);
  EXPECT_EQ(failure_of([&] { open({.read_only = true}); }).code(), EINVAL);
}

TEST_P(FileTest, ARegularFileIsNoHostDevice) {
  file_.set_size(512);
  EXPECT_EQ(failure_of([&] { open({.device = true}); }).code(), EINVAL);
}

TEST_P(FileTest, AutoReadOnlyOpensWhatMayNotBeWritten) {
  file_.set_size(512);
  chmod(file_.path().c_str(), 0444);
  chmod(file_.folder().c_str(), 0755);
  // Root may write everything.
  const bool is_root = geteuid() == 0;
  if (is_root) {
    ASSERT_EQ(seteuid(65534), 0);
  }
  const int code = failure_of([&] { open(); }).code();
  const auto driver = open({.auto_read_only = true});
  if (is_root) {
    ASSERT_EQ(seteuid(0), 0);
  }
  EXPECT_EQ(code, EACCES);
  EXPECT_TRUE(driver->read_only());
  run(driver->close());
}

TEST_P(FileTest, AReopenedDriverMayWrite) {
  file_.set_content("abcd");
  const auto driver = open({.read_only = true});
  EXPECT_EQ(failure_of([&] { write(*driver, 0, "x"); }).code(), EBADF);
  run(driver->reopen(false));
  write(*driver, 0, "x");
  run(driver->reopen(true));
  EXPECT_EQ(failure_of([&] { write(*driver, 0, "y"); }).code(), EBADF);
  EXPECT_EQ(read(*driver, 0, 4), "xbcd");
  run(driver->close());
}

TEST_P(FileTest, ReopeningANameThatMeansAnotherFileNowIsRefused) {
  file_.set_content("abcd");
  const auto driver = open({.read_only = true});
  std::filesystem::rename(file_.path(), file_.folder() + "/old");
  file_.set_content("other");
  EXPECT_EQ(failure_of([&] { run(driver->reopen(false)); }).code(), ESTALE);
  EXPECT_EQ(read(*driver, 0, 4), "abcd");
  run(driver->close());
}

TEST_P(FileTest, MapTellsDataFromHoles) {
  file_.set_size(1 << 20);
  const auto driver = open();
  write(*driver, 256 * kib, std::string(64 * kib, 'd'));
  const Extent hole = map(*driver, 0, 1 << 20);
  EXPECT_EQ(hole.kind, Extent::Kind::zero);
  EXPECT_EQ(hole.length, 256 * kib);
  EXPECT_EQ(hole.host, HostOffset(0));
  const Extent data = map(*driver, 256 * kib + 100, 1 << 19);
  EXPECT_EQ(data.kind, Extent::Kind::data);
  EXPECT_EQ(data.length, 64 * kib - 100);
  EXPECT_EQ(data.host, HostOffset(256 * kib + 100));
  EXPECT_EQ(map(*driver, 320 * kib, 704 * kib).length, 704 * kib);
  EXPECT_EQ(map(*driver, 0, 1000).length, 1000u);
  EXPECT_EQ(map(*driver, 0, 1 << 20, MapMode::allocation_only).kind, Extent::Kind::data);
  run(driver->close());
}

TEST_P(FileTest, MapRemembersExtentsAskedForInAnyOrder) {
  file_.set_size(1 << 20);
  const auto driver = open();
  for (const unsigned at : {192u, 64u, 448u}) write(*driver, at * kib, std::string(64 * kib, 'd'));
  const auto kinds_are_right = [&](std::uint64_t filled) {
    for (const unsigned at : {960u, 0u, 512u, 130u, 448u, 200u, 129u, 64u, 300u, 1u, 511u, 700u}) {
      const bool written = at / 64 == 1 || at / 64 == 3 || at / 64 == 7 || at / 64 == filled;
      const Extent extent = map(*driver, at * kib, (1024 - at) * kib);
      EXPECT_EQ(extent.kind, written ? Extent::Kind::data : Extent::Kind::zero) << at;
      EXPECT_LE(at * kib + extent.length, written ? (at / 64 + 1) * 64 * kib : 1u << 20) << at;
    }
  };
  kinds_are_right(1);
  kinds_are_right(1);
  write(*driver, 640 * kib, std::string(64 * kib, 'd'));  // in the middle of a hole that is known
  kinds_are_right(10);
  EXPECT_EQ(map(*driver, 512 * kib, 512 * kib).length, 128 * kib);
  run(driver->close());
}

TEST_P(FileTest, MapSeesWhatWasWrittenAndPunchedSinceTheLastAnswer) {
  file_.set_size(1 << 20);
  const auto driver = open();
  EXPECT_EQ(map(*driver, 0, 1 << 20).kind, Extent::Kind::zero);
  write(*driver, 64 * kib, std::string(64 * kib, 'd'));
  EXPECT_EQ(map(*driver, 0, 1 << 20).length, 64 * kib);
  EXPECT_EQ(map(*driver, 64 * kib, 512 * kib).kind, Extent::Kind::data);
  run(driver->discard({GuestOffset(64 * kib), 64 * kib}));
  EXPECT_EQ(map(*driver, 64 * kib, 512 * kib).kind, Extent::Kind::zero);
  run(driver->truncate(2 << 20, {}));
  EXPECT_EQ(map(*driver, 0, 2 << 20).length, 2u << 20);
  run(driver->truncate(4096, {}));
  EXPECT_EQ(map(*driver, 0, 4096).length, 4096u);
  run(driver->close());
}

TEST_P(FileTest, MapSeesWhatSomebodyElseWroteIntoAHole) {
  file_.set_size(1 << 20);
  const auto driver = open();
  EXPECT_EQ(map(*driver, 0, 1 << 20).kind, Extent::Kind::zero);
  {
    std::fstream other(file_.path(), std::ios::in | std::ios::out | std::ios::binary);
    other.seekp(64 * kib);
    other << std::string(64 * kib, 'd');
  }
  EXPECT_EQ(map(*driver, 0, 1 << 20).length, 64 * kib);
  EXPECT_EQ(map(*driver, 100 * kib, 1 << 19).kind, Extent::Kind::data);
  run(driver->close());
}

TEST_P(FileTest, ZeroingKeepsTheSpaceUnlessItMayBeGivenBack) {
  const auto size = 256 * kib;
  file_.set_content(std::string(size, 'd'));
  const auto driver = open();
  run(driver->write_zeroes({GuestOffset(0), 64 * kib}, {}));
  run(driver->flush());
  EXPECT_GE(allocated_bytes(), size);
  run(driver->write_zeroes({GuestOffset(128 * kib), 64 * kib}, {.may_unmap = true}));
  run(driver->flush());
  EXPECT_LT(allocated_bytes(), size);
  run(driver->write_zeroes({GuestOffset(100 * kib + 1), 3}, {.no_fallback = true}));
  EXPECT_EQ(driver->size(), size);
  run(driver->close());
  std::string expected(size, 'd');
  expected.replace(0, 64 * kib, 64 * kib, '\0');
  expected.replace(128 * kib, 64 * kib, 64 * kib, '\0');
  expected.replace(100 * kib + 1, 3, 3, '\0');
  EXPECT_EQ(file_.content(), expected);
}

TEST_P(FileTest, ZeroingAcrossTheEndMakesTheFileLonger) {
  for (const bool may_unmap : {false, true}) {
    file_.set_content(std::string(5000, 'd'));
    const auto driver = open();
    run(driver->write_zeroes({GuestOffset(4000), 9000}, {.may_unmap = may_unmap}));
    EXPECT_EQ(driver->size(), 13000u);
    run(driver->write_zeroes({GuestOffset(20000), 1000}, {.may_unmap = may_unmap}));
    EXPECT_EQ(driver->size(), 21000u);
    run(driver->close());
    EXPECT_EQ(file_.content(), std::string(4000, 'd') + std::string(17000, '\0'));
  }
}

TEST_P(FileTest, DiscardedSpaceIsGivenBack) {
  file_.set_content(std::string(256 * kib, 'd'));
  const auto driver = open();
  run(driver->flush());
  const std::uint64_t before = allocated_bytes();
  run(driver->discard({GuestOffset(64 * kib), 128 * kib}));
  EXPECT_EQ(allocated_bytes(), before - 128 * kib);
  EXPECT_EQ(driver->size(), 256 * kib);
  run(driver->close());
}

TEST_P(FileTest, TruncatePreallocatesAsTold) {
  struct Case {
    Preallocation mode;
    bool allocates;
  };
  for (const Case& test : {Case{Preallocation::off, false}, Case{Preallocation::falloc, true},
                           Case{Preallocation::full, true}}) {
    for (const bool direct : {false, true}) {
      file_.set_content("abc");
      const auto driver = open({.direct = direct});
      run(driver->truncate(300'000, {.preallocation = test.mode}));
      EXPECT_EQ(driver->size(), 300'000u);
      run(driver->flush());
      EXPECT_EQ(allocated_bytes() >= 290'000, test.allocates);
      run(driver->close());
      EXPECT_EQ(file_.content(), "abc" + std::string(300'000 - 3, '\0'));
    }
  }
  const auto driver = open();
  EXPECT_EQ(failure_of([&] {
              run(driver->truncate(400'000, {.preallocation = Preallocation::metadata}));
            }).code(),
            ENOTSUP);
  EXPECT_EQ(failure_of([&] { run(driver->truncate(1, {.allow_shrink = false})); }).code(), EINVAL);
  EXPECT_EQ(driver->size(), 300'000u);
  run(driver->close());
}

TEST_P(FileTest, DirectIoStatesItsAlignmentAndObeysTheEndOfTheFile) {
  file_.set_content(std::string(5000, 'd'));
  const auto driver = open({.direct = true});
  const Limits limits = driver->limits();
  EXPECT_GE(limits.request_alignment, 512u);
  EXPECT_LE(limits.memory_alignment, Buffer::alignment);
  Buffer buffer(8192);
  run(driver->read(GuestOffset(0), buffer.span()));
  EXPECT_EQ(std::memcmp(buffer.data(), file_.content().data(), 5000), 0);
  EXPECT_TRUE(is_zero(buffer.span().subspan(5000)));
  run(driver->write(GuestOffset(4096), buffer.first(4096), {}));
  EXPECT_EQ(driver->size(), 8192u);
  run(driver->write_zeroes({GuestOffset(8192), 4096}, {.may_unmap = true}));
  EXPECT_EQ(driver->size(), 12288u);
  run(driver->close());
}

// An engine whose next sync() fails.
class BrokenEngine final : public IoEngine {
 public:
  explicit BrokenEngine(IoEngine& engine) : engine_(engine) {}
  std::string_view name() const override { return "broken"; }
  bool fail_next_sync = false;

 private:
  void start(Request& request) override {
    if (request.operation == Operation::sync && std::exchange(fail_next_sync, false)) {
      request.fd = -1;
    }
    start_on(engine_, request);
  }
  IoEngine& engine_;
};

TEST_P(FileTest, AFailedFlushStaysFailed) {
  file_.set_size(512);
  BrokenEngine engine(context_.io());
  const auto driver = FileDriver::open({.path = file_.path()}, engine, nullptr);
  run(driver->flush());
  engine.fail_next_sync = true;
  EXPECT_EQ(failure_of([&] { run(driver->flush()); }).code(), EBADF);
  EXPECT_EQ(failure_of([&] { run(driver->flush()); }).code(), EIO);
  EXPECT_EQ(failure_of([&] { run(driver->flush()); }).code(), EIO);
  run(driver->close());
}

TEST_P(FileTest, FlushDoesNothingWithNoFlush) {
  file_.set_size(512);
  BrokenEngine engine(context_.io());
  const auto driver = FileDriver::open({.path = file_.path(), .no_flush = true}, engine, nullptr);
  engine.fail_next_sync = true;
  run(driver->flush());
  run(driver->close());
}

TEST_P(FileTest, DescriptorsDoNotLeak) {
  file_.set_size(512);
  const int before = dup(0);
  close(before);
  for (int i = 0; i < 3; ++i) {
    const auto driver = open({.read_only = true});
    run(driver->reopen(false));
    run(driver->close());
    failure_of([&] { open({.device = true}); });
  }
  const int after = dup(0);
  close(after);
  EXPECT_EQ(before, after);
}

TEST_P(FileTest, RandomRequestsMatchAModelInMemory) {
  const unsigned seed = std::getenv("SEED") != nullptr
                            ? static_cast<unsigned>(std::atoi(std::getenv("SEED")))
                            : std::random_device{}();
  SCOPED_TRACE("SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  file_.set_size(0);
  const auto driver = open();
  std::string model;
  for (int step = 0; step < 400; ++step) {
    const std::size_t offset = random() % 200'000;
    const std::size_t length = 1 + random() % 40'000;
    const auto fill = [&](char value) {
      if (model.size() < offset + length) model.resize(offset + length, '\0');
      model.replace(offset, length, length, value);
    };
    switch (random() % 5) {
      case 0:
      case 1: {
        const char value = static_cast<char>('a' + random() % 26);
        write(*driver, offset, std::string(length, value));
        fill(value);
        break;
      }
      case 2:
        run(driver->write_zeroes({GuestOffset(offset), length}, {.may_unmap = random() % 2 == 0}));
        fill('\0');
        break;
      case 3:
        run(driver->truncate(offset, {}));
        model.resize(offset, '\0');
        break;
      default:
        if (offset < model.size()) {
          const std::size_t inside = std::min(length, model.size() - offset);
          ASSERT_EQ(read(*driver, offset, inside), model.substr(offset, inside));
          const Extent extent = map(*driver, offset, inside);
          ASSERT_GT(extent.length, 0u);
          if (extent.kind == Extent::Kind::zero) {
            ASSERT_EQ(model.substr(offset, extent.length), std::string(extent.length, '\0'));
          }
        }
    }
    ASSERT_EQ(driver->size(), model.size());
  }
  EXPECT_EQ(file_.content(), model);
  run(driver->close());
}

}  // namespace
}  // namespace vise
