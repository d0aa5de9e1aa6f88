#include "tools/common/progress.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace vise::tools {
namespace {

using namespace std::chrono_literals;

// A FILE that keeps what is written to it.
class Capture {
 public:
  Capture() : file_(open_memstream(&text_, &size_)) {}
  ~Capture() {
    std::fclose(file_);
    std::free(text_);
  }
  std::FILE* file() { return file_; }
  std::string text() {
    std::fflush(file_);
    return {text_, size_};
  }

 private:
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
};

TEST(Progress, PrintsOnlyStepsOfOnePercent) {
  Capture out;
  Progress progress({.show = true, .out = out.file(), .terminal = 0});
  progress.start();
  progress.set(0.005);
  progress.set(0.01);
  progress.set(0.0195);
  progress.set(0.5);
  progress.complete();
  progress.end();
  EXPECT_EQ(out.text(),
            "    (0.00/100%)\r    (1.00/100%)\r    (50.00/100%)\r    (100.00/100%)\r\n");
}

TEST(Progress, IsSilentWhenQuiet) {
  Capture out;
  Progress progress({.show = true, .quiet = true, .out = out.file(), .terminal = 0});
  progress.start();
  progress.set(0.5);
  progress.complete();
  progress.end();
  EXPECT_EQ(out.text(), "");
}

TEST(Progress, TellsRateAndTimeLeftOnATerminal) {
  Capture out;
  Progress::Clock::time_point now;
  Progress progress({.show = true, .out = out.file(), .terminal = 1, .now = [&] { return now; }});
  progress.start();
  now += 2s;
  progress.set(0.25, std::uint64_t{200} << 20);
  EXPECT_EQ(out.text(), "    (0.00/100%)\r    (25.00/100%)  100 MiB/s  0:06 left\r");
}

TEST(Progress, ReportsOnStandardErrorWhatIsNotShown) {
  Capture out;
  Progress progress({.show = false, .out = out.file(), .terminal = 0});
  progress.start();
  progress.set(0.125);
  testing::internal::CaptureStderr();
  progress.report();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "    (12.50/100%)\n");
  EXPECT_EQ(out.text(), "");
  Progress shown({.show = true, .out = out.file(), .terminal = 0});
  testing::internal::CaptureStderr();
  shown.report();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace vise::tools
