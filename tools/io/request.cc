#include "tools/io/request.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "graph/drained.h"
#include "tools/common/snapshots.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::tools {

std::byte pattern_byte(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 0);
  if (text.empty() || *end != '\0' || errno != 0 || value < 0 || value > 255) {
    Call::fail(fmt::format("{} is not a valid pattern byte", text));
  }
  return static_cast<std::byte>(value);
}

ReportStyle report_style(const Arguments& arguments) {
  if (arguments.has('q')) return ReportStyle::silent;
  return arguments.has('C') ? ReportStyle::one_line : ReportStyle::two_lines;
}

void check_sectors(std::uint64_t value, std::string_view what) {
  if (value % 512 == 0) return;
  Call::fail(fmt::format("{} is not a sector-aligned value for '{}'", value, what));
}

namespace {

HasVmState& vm_state_of(const IoState& state) {
  auto* driver = find_interface<HasVmState>(state.image()->node());
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' has no place for VM state",
                                     state.image()->node().type().name));
  }
  return *driver;
}

}  // namespace

Task<void> load_vm_state(const IoState& state, std::uint64_t offset, IoVec data) {
  HasVmState& driver = vm_state_of(state);
  const auto work = [&] { return driver.load_vm_state(offset, data); };
  co_await while_drained(state.image()->node(), work);
}

Task<void> save_vm_state(const IoState& state, std::uint64_t offset, ConstIoVec data) {
  HasVmState& driver = vm_state_of(state);
  const auto work = [&] { return driver.save_vm_state(offset, data); };
  co_await while_drained(state.image()->node(), work);
}

void check_request_length(const Call& call, std::uint64_t length, std::size_t operand) {
  if (length <= max_request_length) return;
  // Only write has that option.
  const std::string_view lifted = call.command.name == "write" ? " without -n" : "";
  Call::fail(fmt::format("length cannot exceed {}{}, given {}", max_request_length, lifted,
                         call.arguments.operands.at(operand)));
}

std::vector<std::uint64_t> length_operands(const Call& call, std::size_t first) {
  std::vector<std::uint64_t> lengths;
  std::uint64_t sum = 0;
  for (std::size_t i = first; i < call.arguments.operands.size(); ++i) {
    const std::uint64_t length = call.size_operand(i);
    check_request_length(call, length, i);
    sum += length;
    check_request_length(call, sum, i);
    lengths.push_back(length);
  }
  return lengths;
}

RequestBuffer::RequestBuffer(const IoState& state, std::span<const std::uint64_t> lengths,
                             std::byte fill)
    : skip_(state.misaligned ? 16 : 0),
      buffer_(std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{skip_})) {
  std::memset(buffer_.data(), static_cast<int>(fill), buffer_.size());
  auto rest = bytes();
  for (const std::uint64_t length : lengths) {
    segments_.emplace_back(rest.first(length));
    rest = rest.subspan(length);
  }
}

bool consists_of(std::span<const std::byte> data, std::byte pattern) {
  return std::all_of(data.begin(), data.end(), [&](std::byte b) { return b == pattern; });
}

void fail_request(const IoState& state, std::string_view verb, const Error& error) {
  // The line on stdout is what scripts compare; what else is known goes to stderr.
  const std::string text = std::strerror(error.code());
  print(fmt::format("{} failed: {}\n", verb, text));
  if (error.message() != text) print_error(state.program(), error);
  throw CommandFailed();
}

}  // namespace vise::tools
