// Locks: which openers of one file exclude one another, real QEMU included.
#include "protocol/file_lock.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "protocol/file.h"
#include "temporary_file.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise {
namespace {

constexpr PermissionSet read_bit = Permission::consistent_read;
constexpr PermissionSet write_bit = Permission::write;
constexpr PermissionSet resize_bit = Permission::resize;

// What a writable and a read-only image format need of their file.
constexpr Permissions writer = {read_bit | write_bit | resize_bit,
                                Permissions::all().without(write_bit | resize_bit)};
constexpr Permissions reader = {read_bit, Permissions::all().without(write_bit | resize_bit)};
constexpr Permissions generous = {read_bit | write_bit, Permissions::all()};
constexpr Permissions nothing = {{}, Permissions::all()};

class FileLockTest : public testing::Test {
 protected:
  void SetUp() override {
    file_.set_size(1 << 20);
    const FileDescriptor fd = open();
    if (!FileLocks::supported(fd.get())) GTEST_SKIP() << "no OFD locks here";
  }
  FileDescriptor open() { return FileDescriptor(::open(file_.path().c_str(), O_RDWR | O_CLOEXEC)); }

  TemporaryFile file_;
};

std::string conflict(FileLocks& locks, Permissions wanted) {
  try {
    locks.apply(wanted);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EAGAIN);
    EXPECT_NE(error.hint().find("Is another process using the image ["), std::string::npos);
    return error.message();
  }
  return "";
}

TEST_F(FileLockTest, OpenersExcludeOneAnotherByWhatTheyUseAndShare) {
  struct Case {
    Permissions first, second;
    std::string message;
  };
  const Case cases[] = {
      {reader, reader, ""},
      {generous, generous, ""},
      {nothing, writer, ""},
      {writer, writer, "Failed to get \"write\" lock"},
      {reader, writer, "Failed to get \"write\" lock"},
      {writer, reader, "Failed to get shared \"write\" lock"},
      {generous, reader, "Failed to get shared \"write\" lock"},
      {{resize_bit, Permissions::all()}, reader, "Failed to get shared \"resize\" lock"},
      {{{}, Permissions::all().without(read_bit)},
       reader,
       "Failed to get \"consistent read\" lock"},
  };
  for (const Case& test : cases) {
    const FileDescriptor first = open();
    const FileDescriptor second = open();
    FileLocks first_locks(first.get(), file_.path());
    FileLocks second_locks(second.get(), file_.path());
    EXPECT_EQ(conflict(first_locks, test.first), "");
    EXPECT_EQ(conflict(second_locks, test.second), test.message);
    EXPECT_EQ(conflict(first_locks, nothing), "");
    EXPECT_EQ(conflict(second_locks, test.second), "");
  }
}

TEST_F(FileLockTest, ARefusedChangeLeavesTheOldLocks) {
  const FileDescriptor first = open();
  const FileDescriptor second = open();
  FileLocks first_locks(first.get(), file_.path());
  FileLocks second_locks(second.get(), file_.path());
  first_locks.apply(reader);
  second_locks.apply(reader);
  EXPECT_NE(conflict(second_locks, writer), "");
  // Neither has a stray "write is used" byte stayed, nor was one of the reader's dropped.
  EXPECT_EQ(conflict(first_locks, reader), "");
  EXPECT_NE(conflict(first_locks, writer), "");
}

TEST_F(FileLockTest, MovedLocksHoldAfterTheOldDescriptorIsClosed) {
  FileDescriptor first = open();
  FileLocks first_locks(first.get(), file_.path());
  first_locks.apply(writer);
  FileDescriptor replacement = open();
  first_locks.move_to(replacement.get());
  first = std::move(replacement);
  replacement = FileDescriptor();
  const FileDescriptor second = open();
  FileLocks second_locks(second.get(), file_.path());
  EXPECT_NE(conflict(second_locks, writer), "");
  first_locks.apply(nothing);
  EXPECT_EQ(conflict(second_locks, writer), "");
}

TEST_F(FileLockTest, TheDriverLocksUnlessTold) {
  Context context;
  const auto first = FileDriver::open({.path = file_.path()}, context.io(), nullptr);
  const auto second = FileDriver::open({.path = file_.path()}, context.io(), nullptr);
  const auto unlocked = FileDriver::open(
      {.path = file_.path(), .locking = FileOptions::Locking::off}, context.io(), nullptr);
  context.loop().run(first->apply_permissions(writer));
  EXPECT_THROW(context.loop().run(second->apply_permissions(writer)), Error);
  context.loop().run(unlocked->apply_permissions(writer));
  context.loop().run(first->reopen(true));
  EXPECT_THROW(context.loop().run(second->apply_permissions(writer)), Error);
  context.loop().run(first->close());
  context.loop().run(second->apply_permissions(writer));
  context.loop().run(second->close());
  context.loop().run(unlocked->close());
}

// The exit code of a shell command whose output is collected.
struct Result {
  int code = -1;
  std::string output;
};
Result shell(const std::string& command) {
  Result result;
  FILE* pipe = popen((command + " 2>&1").c_str(), "re");
  char buffer[512];
  while (fgets(buffer, sizeof buffer, pipe) != nullptr) result.output += buffer;
  result.code = WEXITSTATUS(pclose(pipe));
  return result;
}

class QemuLockTest : public FileLockTest {
 protected:
  void SetUp() override {
    FileLockTest::SetUp();
    if (shell("command -v qemu-img && command -v qemu-io").code != 0) {
      GTEST_SKIP() << "qemu-utils are not installed";
    }
    ASSERT_EQ(shell("qemu-img create -f qcow2 " + file_.path() + " 1M").code, 0);
  }
};

TEST_F(QemuLockTest, QemuIsRefusedWhileWeWrite) {
  const FileDescriptor fd = open();
  FileLocks locks(fd.get(), file_.path());
  locks.apply(writer);
  const Result info = shell("qemu-img info " + file_.path());
  EXPECT_EQ(info.code, 1);
  EXPECT_NE(info.output.find("Failed to get shared \"write\" lock"), std::string::npos)
      << info.output;
  EXPECT_EQ(shell("qemu-img info -U " + file_.path()).code, 0);
  locks.apply(reader);
  EXPECT_EQ(shell("qemu-img info " + file_.path()).code, 0);
  EXPECT_EQ(shell("qemu-img resize " + file_.path() + " 2M").code, 1);
  locks.apply(nothing);
  EXPECT_EQ(shell("qemu-img resize " + file_.path() + " 2M").code, 0);
}

// Keeps the image open in qemu-io until destroyed.
class QemuIo {
 public:
  QemuIo(const std::string& flags, const std::string& path) {
    const std::string fifo = path + ".out";
    mkfifo(fifo.c_str(), 0600);
    commands_ = popen(("exec qemu-io " + flags + " " + path + " >" + fifo).c_str(), "we");
    answers_ = fopen(fifo.c_str(), "re");
    unlink(fifo.c_str());
    // A read that has been answered shows that the image is open and locked.
    fputs("read 0 512\n", commands_);
    fflush(commands_);
    char line[256];
    while (fgets(line, sizeof line, answers_) != nullptr && strstr(line, "512/512") == nullptr) {
    }
  }
  ~QemuIo() {
    fputs("quit\n", commands_);
    pclose(commands_);
    fclose(answers_);
  }

 private:
  FILE* commands_;
  FILE* answers_;
};

TEST_F(QemuLockTest, WeAreRefusedWhileQemuWrites) {
  const FileDescriptor fd = open();
  FileLocks locks(fd.get(), file_.path());
  {
    const QemuIo qemu("", file_.path());
    EXPECT_EQ(conflict(locks, writer), "Failed to get \"write\" lock");
    EXPECT_EQ(conflict(locks, reader), "Failed to get shared \"write\" lock");
  }
  {
    const QemuIo qemu("-r", file_.path());
    EXPECT_EQ(conflict(locks, writer), "Failed to get \"write\" lock");
    EXPECT_EQ(conflict(locks, reader), "");
    locks.apply(nothing);
  }
  EXPECT_EQ(conflict(locks, writer), "");
}

}  // namespace
}  // namespace vise
