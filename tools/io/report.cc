#include "tools/io/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "tools/common/sizes.h"

namespace vise::tools {

namespace {

struct ClockTime {
  std::uint64_t hours, minutes, seconds, hundredths;
};

ClockTime clock_time(std::chrono::nanoseconds elapsed) {
  const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(0, elapsed.count()));
  const std::uint64_t hundredths = (count + 5'000'000) / 10'000'000;
  return {hundredths / 360000, hundredths / 6000 % 60, hundredths / 100 % 60, hundredths % 100};
}

std::string long_time(std::chrono::nanoseconds elapsed) {
  const ClockTime t = clock_time(elapsed);
  return fmt::format("{}:{:02}:{:02}.{:02}", t.hours, t.minutes, t.seconds, t.hundredths);
}

}  // namespace

std::string elapsed_text(std::chrono::nanoseconds elapsed) {
  if (elapsed >= std::chrono::seconds(1)) return long_time(elapsed);
  const ClockTime t = clock_time(elapsed);
  return fmt::format("{:02}.{:02} sec", t.seconds, t.hundredths);
}

std::string report_text(const RequestReport& report, ReportStyle style) {
  if (style == ReportStyle::silent) return {};
  // A request below the clock's resolution must not make the rate infinite.
  const double seconds = std::max(1e-9, std::chrono::duration<double>(report.elapsed).count());
  const double byte_rate = static_cast<double>(report.done) / seconds;
  const double operation_rate = 1 / seconds;
  if (style == ReportStyle::one_line) {
    return fmt::format("{},1,{},{:.3f},{:.3f}\n", report.done, long_time(report.elapsed), byte_rate,
                       operation_rate);
  }
  return fmt::format("{} {}/{} bytes at offset {}\n{}, 1 ops; {} ({}/sec and {:.4f} ops/sec)\n",
                     report.verb, report.done, report.asked, report.offset,
                     io_size_text(static_cast<double>(report.done)), elapsed_text(report.elapsed),
                     io_size_text(byte_rate), operation_rate);
}

std::string dump_text(std::span<const std::byte> data, std::uint64_t offset) {
  constexpr std::size_t row = 16;
  std::string text;
  for (std::size_t start = 0; start < data.size(); start += row) {
    const auto bytes = data.subspan(start, std::min(row, data.size() - start));
    fmt::format_to(std::back_inserter(text), "{:08x}:  ", offset + start);
    for (const std::byte byte : bytes) {
      fmt::format_to(std::back_inserter(text), "{:02x} ", static_cast<unsigned>(byte));
    }
    text += ' ';
    for (const std::byte byte : bytes) {
      // Letters and digits only: what qemu-io shows.
      const char c = static_cast<char>(byte);
      const bool shown = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
      text += shown ? c : '.';
    }
    text += '\n';
  }
  return text;
}

}  // namespace vise::tools
