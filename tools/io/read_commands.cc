// read, readv, aio_read.
#include <fmt/format.h>

#include <cerrno>
#include <memory>

#include "tools/io/request.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

constexpr std::byte unread{0xab};  // what a buffer holds before it is read into

// What is compared with -P.
struct Verification {
  std::byte pattern;
  std::uint64_t start;  // in the data read
  std::uint64_t length;
};

std::optional<Verification> verification(const Call& call, std::uint64_t length) {
  const Arguments& arguments = call.arguments;
  if (!arguments.has('P')) {
    if (arguments.has('s') || arguments.has('l')) call.fail_with_usage();
    return std::nullopt;
  }
  Verification result{pattern_byte(*arguments.last('P')), 0, length};
  if (const std::string* text = arguments.last('s')) result.start = call.size_value(*text);
  if (result.start > length) Call::fail("pattern verification range exceeds end of read data");
  result.length = length - result.start;
  if (const std::string* text = arguments.last('l')) {
    const std::uint64_t wanted = call.size_value(*text);
    if (wanted > result.length) Call::fail("pattern verification range exceeds end of read data");
    result.length = wanted;
  }
  return result;
}

// One read with everything that is to be printed about it.
struct ReadRequest {
  GuestOffset offset;
  std::optional<Verification> verify;
  bool dump = false;
  bool vm_state = false;
  ReportStyle style = ReportStyle::two_lines;
  RequestBuffer buffer;
};

// Prints the outcome; false if the data are not what -P says.
bool report_read(const ReadRequest& request, std::chrono::nanoseconds elapsed) {
  bool matches = true;
  if (request.verify) {
    const Verification& verify = *request.verify;
    const auto data = request.buffer.bytes().subspan(verify.start, verify.length);
    matches = consists_of(data, verify.pattern);
    if (!matches) {
      print(fmt::format("Pattern verification failed at offset {}, {} bytes\n",
                        request.offset.bytes() + verify.start, verify.length));
    }
  }
  if (request.dump && request.style != ReportStyle::silent) {
    print(dump_text(request.buffer.bytes(), request.offset.bytes()));
  }
  const std::uint64_t length = request.buffer.size();
  print(report_text({"read", request.offset.bytes(), length, length, elapsed}, request.style));
  return matches;
}

Task<void> read_and_report(const IoState& state, ReadRequest& request, std::string_view verb) {
  const Stopwatch watch;
  try {
    const IoVec data(request.buffer.segments());
    if (request.vm_state) {
      co_await load_vm_state(state, request.offset.bytes(), data);
    } else {
      co_await state.image()->read(request.offset, data);
    }
  } catch (const Error& error) {
    fail_request(state, verb, error);
  }
  if (!report_read(request, watch.elapsed())) throw CommandFailed();
}

ReadRequest make_request(const Call& call, std::span<const std::uint64_t> lengths,
                         std::uint64_t offset) {
  std::uint64_t sum = 0;
  for (const std::uint64_t length : lengths) sum += length;
  return ReadRequest{.offset = GuestOffset(offset),
                     .verify = verification(call, sum),
                     .dump = call.arguments.has('v'),
                     .style = report_style(call.arguments),
                     .buffer = RequestBuffer(call.state, lengths, unread)};
}

Task<void> read_beside(const IoState& state, std::unique_ptr<ReadRequest> request) {
  try {
    co_await read_and_report(state, *request, "readv");
  } catch (const CommandFailed&) {
    // Asynchronous requests never make a command fail.
  }
}

}  // namespace

Task<void> run_read(Call& call) {
  if (call.arguments.operands.size() != 2) call.fail_with_usage();
  const std::uint64_t offset = call.size_operand(0);
  const std::vector<std::uint64_t> lengths = length_operands(call, 1);
  ReadRequest request = make_request(call, lengths, offset);
  request.vm_state = call.arguments.has('b');
  if (request.vm_state) {
    check_sectors(offset, "offset");
    check_sectors(lengths.front(), "count");
  }
  co_await read_and_report(call.state, request, "read");
}

Task<void> run_readv(Call& call) {
  if (call.arguments.operands.size() < 2) call.fail_with_usage();
  const std::uint64_t offset = call.size_operand(0);
  const std::vector<std::uint64_t> lengths = length_operands(call, 1);
  ReadRequest request = make_request(call, lengths, offset);
  co_await read_and_report(call.state, request, "readv");
}

Task<void> run_aio_read(Call& call) {
  if (call.arguments.operands.size() < 2) call.fail_with_usage();
  if (call.arguments.has('i')) {
    print("injecting invalid read request\n");
    co_return;
  }
  const std::uint64_t offset = call.size_operand(0);
  const std::vector<std::uint64_t> lengths = length_operands(call, 1);
  auto request = std::make_unique<ReadRequest>(make_request(call, lengths, offset));
  Task<void> work = read_beside(call.state, std::move(request));
  call.state.outstanding().spawn(std::move(work));
}

}  // namespace vise::tools
