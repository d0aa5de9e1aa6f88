// Context: which I/O engine it gets.
#include "vise/context.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace vise
