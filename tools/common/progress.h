// Progress of long operations: -p on stdout, on demand on stderr (tools/common/long_work.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>

namespace vise::tools {

/// Keeps SIGUSR1 from ending the program; call before any thread is started. The signal then waits
/// until a LongWork fetches it.
void block_progress_signal();

/// Prints how far an operation has come. With -p: "    (P/100%)\r" on stdout, first 0.00, then
/// whenever it has moved by at least 1, at last 100.00; on a terminal with rate and time left
/// behind it. Without: one line on stderr for each report().
class Progress {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    bool show = false;                       // -p
    bool quiet = false;                      // -q: nothing on stdout
    std::FILE* out = nullptr;                // null: stdout
    int terminal = -1;                       // is `out` one; -1: ask it
    std::function<Clock::time_point()> now;  // empty: the real clock
  };
  explicit Progress(Options options);
  /// 0.00; the clock of the rate starts.
  void start();
  Progress(const Progress&) = delete;

  /// `fraction` of the work is done (0 to 1); `bytes` of data have been moved so far.
  void set(double fraction, std::uint64_t bytes = 0);
  /// Tells on stderr how far the work is, unless that is shown already.
  void report() const;
  /// 100.00.
  void complete();
  /// The newline at the very end, if anything was shown.
  void end();

 private:
  void show(double percent, std::uint64_t bytes);

  Options options_;
  bool shows_ = false;
  bool terminal_ = false;
  double percent_ = 0;
  double shown_percent_ = 0;
  std::size_t shown_width_ = 0;
  std::uint64_t bytes_ = 0;
  Clock::time_point start_;
  Clock::time_point shown_at_;
};

}  // namespace vise::tools
