// What the commands that move data have in common: buffers, patterns, checked lengths, the clock.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/io/command.h"
#include "tools/io/report.h"
#include "vise/buffer.h"
#include "vise/io_vec.h"

namespace vise::tools {

/// The most bytes of one request: 2^31 - 512.
inline constexpr std::uint64_t max_request_length = (std::uint64_t{1} << 31) - 512;

/// The byte of -P: a C integer from 0 to 255. Prints the reason and fails for others.
std::byte pattern_byte(const std::string& text);

/// The style -C and -q ask for.
ReportStyle report_style(const Arguments& arguments);

/// The lengths among the operands from `first` on; each and their sum at most max_request_length.
std::vector<std::uint64_t> length_operands(const Call& call, std::size_t first);
/// Fails with the usual line if `length` is too long.
void check_request_length(const Call& call, std::uint64_t length, std::size_t operand);

/// Prints a line and fails if `value`, which `what` names, is no multiple of 512.
void check_sectors(std::uint64_t value, std::string_view what);

/// The VM state of the image, -b. Throws Error(ENOTSUP) where the format has none.
Task<void> load_vm_state(const IoState& state, std::uint64_t offset, IoVec data);
Task<void> save_vm_state(const IoState& state, std::uint64_t offset, ConstIoVec data);

/// Memory of one request: one stretch per length, as the v commands ask for, off alignment if the
/// program runs with -m.
class RequestBuffer {
 public:
  RequestBuffer(const IoState& state, std::span<const std::uint64_t> lengths, std::byte fill);

  std::uint64_t size() const { return bytes().size(); }
  std::span<std::byte> bytes() { return buffer_.span().subspan(skip_); }
  std::span<const std::byte> bytes() const { return buffer_.span().subspan(skip_); }
  /// One segment per length. Valid while this object stays where it is.
  const std::vector<IoSegment>& segments() const { return segments_; }

 private:
  std::size_t skip_ = 0;
  Buffer buffer_;
  std::vector<IoSegment> segments_;
};

/// Is every byte `pattern`?
bool consists_of(std::span<const std::byte> data, std::byte pattern);

class Stopwatch {
 public:
  std::chrono::nanoseconds elapsed() const { return std::chrono::steady_clock::now() - start_; }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// "VERB failed: TEXT" on stdout, TEXT being that of the errno, more about it on stderr; the
/// command fails.
[[noreturn]] void fail_request(const IoState& state, std::string_view verb, const Error& error);

}  // namespace vise::tools
