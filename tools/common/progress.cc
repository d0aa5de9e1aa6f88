#include "tools/common/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <utility>

#include "tools/common/sizes.h"

namespace vise::tools {

namespace {

std::string duration_text(double seconds) {
  const auto total = static_cast<std::uint64_t>(seconds + 0.5);
  if (total >= 3600) {
    return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
  }
  return fmt::format("{}:{:02}", total / 60, total % 60);
}

}  // namespace

void block_progress_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Progress::Progress(Options options) : options_(std::move(options)) {
  if (options_.out == nullptr) options_.out = stdout;
  if (!options_.now) options_.now = [] { return Clock::now(); };
  shows_ = options_.show && !options_.quiet;
  terminal_ = options_.terminal < 0 ? isatty(fileno(options_.out)) == 1 : options_.terminal > 0;
}

void Progress::start() {
  start_ = options_.now();
  shown_at_ = start_;
  if (shows_) show(0, 0);
}

void Progress::report() const {
  if (!options_.show || options_.quiet) fmt::print(stderr, "    ({:.2f}/100%)\n", percent_);
}

void Progress::set(double fraction, std::uint64_t bytes) {
  const double percent = std::clamp(fraction, 0.0, 1.0) * 100;
  percent_ = percent;
  bytes_ = bytes;
  if (!shows_) return;
  // On a terminal the rate and the time left should not stand still on large images.
  const bool stale = terminal_ && options_.now() - shown_at_ >= std::chrono::milliseconds(500);
  if (percent - shown_percent_ >= 1 || stale) show(percent, bytes);
}

void Progress::complete() {
  if (shows_ && shown_percent_ < 100) show(100, bytes_);
}

void Progress::end() {
  if (!shows_) return;
  std::fputc('\n', options_.out);
  std::fflush(options_.out);
}

void Progress::show(double percent, std::uint64_t bytes) {
  shown_percent_ = percent;
  shown_at_ = options_.now();
  std::string line = fmt::format("    ({:.2f}/100%)", percent);
  if (terminal_) {
    const double seconds = std::chrono::duration<double>(shown_at_ - start_).count();
    if (bytes > 0 && seconds > 0.1) {
      line += fmt::format("  {}/s", image_size_text(static_cast<std::uint64_t>(bytes / seconds)));
    }
    if (percent > 0 && percent < 100 && seconds > 0.1) {
      line += fmt::format("  {} left", duration_text(seconds * (100 - percent) / percent));
    }
    const std::size_t width = line.size();
    if (width < shown_width_) line.append(shown_width_ - width, ' ');
    shown_width_ = width;
  }
  line += '\r';
  std::fwrite(line.data(), 1, line.size(), options_.out);
  std::fflush(options_.out);
}

}  // namespace vise::tools
