// Context: which I/O engine it gets.
#include "vise/context.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>

#include "util/io_engine.h"

namespace vise {
namespace {

TEST(Context, ThreadsDoTheIoWhereTheEnvironmentForbidsIoUring) {
  setenv("VISE_IO_URING", "0", 1);
  Context context;
  unsetenv("VISE_IO_URING");
  EXPECT_EQ(context.io().name(), "threads");
  EXPECT_EQ(&context.io(), &context.io_threads());
}

TEST(Context, ThreadsDoTheIoWhereTheOptionsSaySo) {
  Context context({.worker_threads = 3, .io_uring = false});
  EXPECT_EQ(context.io().name(), "threads");
  EXPECT_EQ(context.workers().threads(), 3u);
}

TEST(Context, TheThreadEngineIsThereBesideIoUring) {
  Context context;
  EXPECT_EQ(context.io_threads().name(), "threads");
}

// From here on the kernel refuses this process io_uring, as containers do.
bool forbid_io_uring() {
  std::array<sock_filter, 4> filter = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program = {.len = filter.size(), .filter = filter.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// The exit code of a process that does its I/O where io_uring is refused.
[[noreturn]] void use_files_without_io_uring() {
  constexpr int seccomp_is_refused_too = 77;
  if (!forbid_io_uring()) _exit(seccomp_is_refused_too);
  Context context;
  char path[] = "/tmp/vise-context-XXXXXX";
  const int fd = mkstemp(path);
  unlink(path);
  const std::array<std::byte, 3> written = {std::byte{1}, std::byte{2}, std::byte{3}};
  std::array<std::byte, 3> read{};
  context.loop().run(context.io().write(fd, std::span<const std::byte>(written), 5));
  context.loop().run(context.io().sync(fd));
  context.loop().run(context.io().read(fd, std::span<std::byte>(read), 5));
  _exit(context.io().name() == "threads" && read == written ? 0 : 1);
}

TEST(Context, ThreadsDoTheIoWhereTheKernelRefusesIoUring) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      use_files_without_io_uring(),
      [](int status) {
        return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77);
      },
      "");
}

}  // namespace
}  // namespace vise
