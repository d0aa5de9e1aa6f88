// write, writev, aio_write, aio_flush.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>

#include "tools/io/request.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

constexpr std::byte usual_pattern{0xcd};

// One write or zeroing, with what is to be printed about it.
struct WriteRequest {
  GuestOffset offset;
  std::uint64_t length = 0;
  bool zeroes = false;
  bool vm_state = false;
  ZeroFlags zero_flags;
  WriteFlags flags;
  ReportStyle style = ReportStyle::two_lines;
  std::optional<RequestBuffer> buffer;  // not for zeroes
};

std::byte write_pattern(const Arguments& arguments) {
  const std::string* text = arguments.last('P');
  return text != nullptr ? pattern_byte(*text) : usual_pattern;
}

// The file's bytes again and again.
void fill_from_file(std::span<std::byte> data, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> content;
  if (file) {
    content.resize(data.size());
    file.read(content.data(), static_cast<std::streamsize>(content.size()));
    content.resize(static_cast<std::size_t>(file.gcount()));
  }
  if (!file && !file.eof()) {
    fmt::print(stderr, "{}: {}\n", path, std::strerror(errno != 0 ? errno : EIO));
    throw CommandFailed();
  }
  if (content.empty()) {
    fmt::print(stderr, "{}: file is empty\n", path);
    throw CommandFailed();
  }
  for (std::size_t done = 0; done < data.size(); done += content.size()) {
    std::memcpy(data.data() + done, content.data(), std::min(content.size(), data.size() - done));
  }
}

Task<void> write_and_report(const IoState& state, WriteRequest& request, std::string_view verb) {
  Child& image = *state.image();
  const Stopwatch watch;
  try {
    // A raw file would grow, but a guest's disk has an end.
    const bool is_inside = GuestRange{request.offset, request.length}.ends_by(image.size());
    if (!request.vm_state && !is_inside) throw Error::system_error(EIO);
    if (request.vm_state) {
      const ConstIoVec data(request.buffer->segments());
      co_await save_vm_state(state, request.offset.bytes(), data);
    } else if (request.zeroes) {
      co_await image.write_zeroes({request.offset, request.length}, request.zero_flags);
    } else {
      co_await image.write(request.offset, ConstIoVec(request.buffer->segments()), request.flags);
    }
  } catch (const Error& error) {
    fail_request(state, verb, error);
  }
  print(report_text(
      {"wrote", request.offset.bytes(), request.length, request.length, watch.elapsed()},
      request.style));
}

void check_combination(const Arguments& arguments) {
  const auto has = [&](int key) { return arguments.has(key); };
  if (has('b') && has('z')) Call::fail("-b and -z cannot be specified at the same time");
  if (has('f') && (has('b') || has('c'))) {
    Call::fail("-f and -b or -c cannot be specified at the same time");
  }
  if (has('n') && !has('z')) Call::fail("-n requires -z to be specified");
  if (has('u') && !has('z')) Call::fail("-u requires -z to be specified");
  if (has('z') + has('P') + has('s') > 1) {
    Call::fail("Only one of -z, -P, and -s can be specified at the same time");
  }
}

WriteRequest make_request(const Call& call) {
  const Arguments& arguments = call.arguments;
  WriteRequest request;
  request.offset = GuestOffset(call.size_operand(0));
  request.style = report_style(arguments);
  request.zeroes = arguments.has('z');
  const bool fua = arguments.has('f') || call.state.image_arguments().cache.writethrough;
  if (request.zeroes) {
    request.length = call.size_operand(1);
    if (!arguments.has('n')) check_request_length(call, request.length, 1);
    request.zero_flags = {
        .may_unmap = arguments.has('u'), .fua = fua, .no_fallback = arguments.has('n')};
    return request;
  }
  const std::vector<std::uint64_t> lengths = length_operands(call, 1);
  for (const std::uint64_t length : lengths) request.length += length;
  request.flags.fua = fua;
  return request;
}

void allocate(const Call& call, WriteRequest& request) {
  if (request.zeroes) return;
  request.buffer.emplace(call.state, length_operands(call, 1), write_pattern(call.arguments));
}

Task<void> write_beside(const IoState& state, std::unique_ptr<WriteRequest> request) {
  try {
    co_await write_and_report(state, *request, "aio_write");
  } catch (const CommandFailed&) {
    // Asynchronous requests never make a command fail.
  }
}

}  // namespace

Task<void> run_write(Call& call) {
  const Arguments& arguments = call.arguments;
  if (arguments.operands.size() != 2) call.fail_with_usage();
  check_combination(arguments);
  WriteRequest request = make_request(call);
  if (arguments.has('b') || arguments.has('c')) {
    check_sectors(request.offset.bytes(), "offset");
    if (arguments.has('b')) check_sectors(request.length, "count");
  }
  allocate(call, request);
  if (const std::string* file = arguments.last('s')) {
    fill_from_file(request.buffer->bytes(), *file);
  }
  request.vm_state = arguments.has('b');
  request.flags.compressed = arguments.has('c');
  co_await write_and_report(call.state, request, "write");
}

Task<void> run_writev(Call& call) {
  if (call.arguments.operands.size() < 2) call.fail_with_usage();
  WriteRequest request = make_request(call);
  allocate(call, request);
  co_await write_and_report(call.state, request, "writev");
}

Task<void> run_aio_write(Call& call) {
  const Arguments& arguments = call.arguments;
  if (arguments.operands.size() < 2) call.fail_with_usage();
  if (arguments.has('u') && !arguments.has('z')) Call::fail("-u requires -z to be specified");
  if (arguments.has('z') && arguments.operands.size() != 2) {
    Call::fail("-z supports only a single length parameter");
  }
  if (arguments.has('i')) {
    print("injecting invalid write request\n");
    co_return;
  }
  auto request = std::make_unique<WriteRequest>(make_request(call));
  allocate(call, *request);
  Task<void> work = write_beside(call.state, std::move(request));
  call.state.outstanding().spawn(std::move(work));
}

Task<void> run_aio_flush(Call& call) { co_await call.state.outstanding().join(); }

}  // namespace vise::tools
