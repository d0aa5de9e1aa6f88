// The lines vise-io prints about requests. Pure functions.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace vise::tools {

/// How a finished request is reported.
enum class ReportStyle { two_lines, one_line, silent };

struct RequestReport {
  std::string_view verb;  // read, wrote, discard
  std::uint64_t offset = 0;
  std::uint64_t asked = 0;  // bytes
  std::uint64_t done = 0;   // bytes
  std::chrono::nanoseconds elapsed{};
};

/// "wrote 65536/65536 bytes at offset 65536" and the line with rates, or the comma-separated line
/// of -C; each with its newline. Always one operation.
std::string report_text(const RequestReport& report, ReportStyle style);

/// "00.25 sec", or "H:MM:SS.hh" from one second on.
std::string elapsed_text(std::chrono::nanoseconds elapsed);

/// The bytes as -v shows them, 16 to a line, with offsets from `offset` on.
std::string dump_text(std::span<const std::byte> data, std::uint64_t offset);

}  // namespace vise::tools
