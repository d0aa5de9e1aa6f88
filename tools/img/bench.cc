// vise-img bench: a number of equal requests, several at a time, and how long they took.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/sync.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'c', "count", "NUMBER", "requests in all, 75000 if not given"},
    {'d', "depth", "NUMBER", "requests at a time, 64 if not given"},
    {'s', "buffer-size", "SIZE", "bytes of one request, 4k if not given"},
    {'S', "step-size", "SIZE", "bytes from one request to the next; their size if not given"},
    {'o', "offset", "OFFSET", "where the first request goes, 0 if not given"},
    {'w', "write", nullptr, "write; else read"},
    {key::pattern, "pattern", "NUMBER", "the byte to write, 0 to 255; 0 if not given"},
    {key::flush_interval, "flush-interval", "NUMBER", "with -w: flush after so many requests"},
    {key::no_drain, "no-drain", nullptr, "do not wait for all requests in flight before a flush"},
    {'i', "aio", "AIO", "threads, native or io_uring"},
    {'n', "native", nullptr, "like -i native"},
    {'t', "cache", "CACHE", "cache mode; writeback if not given"},
    shared::format,
    shared::image_opts,
    {'U', "force-share", nullptr, "others may write the image meanwhile; not with -w"},
    {'q', "quiet", nullptr, "no effect: the result is printed all the same"},
    shared::help,
};

struct Request {
  ImageArguments image;
  std::uint64_t count = 75000;
  std::uint64_t depth = 64;
  std::uint64_t size = 4096;  // bytes
  std::uint64_t step = 4096;  // bytes
  std::uint64_t offset = 0;
  std::uint64_t flush_interval = 0;  // requests; 0: no flushes
  bool write = false;
  bool drain = true;  // before a flush
  std::byte pattern{0};
};

class Bench {
 public:
  Bench(Child& image, const Request& request)
      : image_(image), request_(request), offset_(request.offset) {}

  /// All requests and flushes, in rounds where a flush waits for what is in flight.
  Task<void> run();

 private:
  Task<void> run_round(std::uint64_t count);
  Task<void> work();
  Task<void> transfer(GuestOffset offset, Buffer& buffer);
  GuestOffset next_offset();

  Child& image_;
  const Request& request_;
  std::uint64_t offset_;  // of the next request
  std::uint64_t started_ = 0;
  std::uint64_t stop_at_ = 0;  // started_ at the end of the round
};

// A request that would reach past the end starts over at the beginning instead.
GuestOffset Bench::next_offset() {
  const std::uint64_t last = image_.size() - request_.size;
  if (offset_ > last) {
    offset_ %= image_.size();
    if (offset_ > last) offset_ = 0;
  }
  const GuestOffset offset(offset_);
  offset_ += request_.step;
  return offset;
}

Task<void> Bench::transfer(GuestOffset offset, Buffer& buffer) {
  std::string context = fmt::format("Failed request at offset {}", offset.bytes());
  if (request_.write) {
    const WriteFlags flags{.fua = request_.image.cache.writethrough};
    co_await image_.write(offset, ConstIoVec(buffer.span()), flags).context(std::move(context));
  } else {
    co_await image_.read(offset, IoVec(buffer.span())).context(std::move(context));
  }
}

Task<void> Bench::work() {
  Buffer buffer(request_.size);
  std::memset(buffer.data(), static_cast<int>(request_.pattern), buffer.size());
  while (started_ < stop_at_) {
    const std::uint64_t number = ++started_;
    co_await transfer(next_offset(), buffer);
    const std::uint64_t interval = request_.flush_interval;
    if (!request_.drain && interval > 0 && number % interval == 0) co_await image_.flush();
  }
}

Task<void> Bench::run_round(std::uint64_t count) {
  stop_at_ = started_ + count;
  TaskScope workers;
  for (std::uint64_t i = 0; i < std::min(request_.depth, count); ++i) workers.spawn(work());
  co_await workers.join();
}

Task<void> Bench::run() {
  const bool rounds = request_.drain && request_.flush_interval > 0;
  while (started_ < request_.count) {
    const std::uint64_t rest = request_.count - started_;
    co_await run_round(rounds ? std::min(request_.flush_interval, rest) : rest);
    if (rounds && started_ % request_.flush_interval == 0) co_await image_.flush();
  }
}

void print_plan(const Request& request) {
  print(
      fmt::format("Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, "
                  "step size {})\n",
                  request.count, request.write ? "write" : "read", request.size, request.depth,
                  request.offset, request.step));
  if (request.flush_interval > 0) {
    print(fmt::format("Sending flush every {} requests\n", request.flush_interval));
  }
  std::fflush(stdout);
}

Task<int> bench(ImageSession& session, const Request& request) {
  Child* image = co_await session.open(request.image);
  print_plan(request);
  const std::uint64_t size = image->size();
  if (request.offset >= size || request.size > size) {
    throw Error(EINVAL, fmt::format("Requests of {} bytes from offset {} on do not fit into the {} "
                                    "bytes of the image",
                                    request.size, request.offset, size));
  }
  const auto start = std::chrono::steady_clock::now();
  Bench bench(*image, request);
  co_await bench.run();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  print(fmt::format("Run completed in {:.3f} seconds.\n", elapsed.count()));
  co_await session.close(image);
  co_return 0;
}

void read_numbers(const Arguments& arguments, Request& request) {
  const auto number = [&](int key, std::string_view what, std::uint64_t& value,
                          std::uint64_t least = 1, std::uint64_t most = INT32_MAX) {
    const std::string* text = arguments.last(key);
    if (text != nullptr) value = number_argument(*text, what, least, most);
  };
  number('c', "request count", request.count);
  number('d', "queue depth", request.depth);
  number('s', "buffer size", request.size);
  request.step = request.size;
  number('S', "step size", request.step);
  number('o', "offset", request.offset, 0, INT64_MAX);
  number(key::flush_interval, "flush interval", request.flush_interval, 0, INT32_MAX);
  std::uint64_t pattern = 0;
  number(key::pattern, "pattern byte", pattern, 0, 255);
  request.pattern = static_cast<std::byte>(pattern);
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  read_numbers(arguments, request);
  request.write = arguments.has('w');
  request.drain = !arguments.has(key::no_drain);
  if (!request.write && request.flush_interval > 0) {
    throw Error(EINVAL, "--flush-interval needs -w (--write): reads leave nothing to flush");
  }
  if (request.flush_interval > 0 && request.flush_interval < request.depth) {
    throw Error(EINVAL, fmt::format("Invalid flush interval {}: must not be below the depth, {}",
                                    request.flush_interval, request.depth));
  }
  request.image = image_argument(arguments);
  request.image.read_only = !request.write;
  request.image.cache = cache_argument(arguments, 't');
  for (const Arguments::Option& option : arguments.options) {
    if (option.key == 'i') request.image.aio = option.value;
    if (option.key == 'n') request.image.aio = "native";
  }
  return run_session(program, arguments, bench, request);
}

}  // namespace

constexpr Subcommand bench_command = {"bench", "FILE", "measures how fast requests are served",
                                      options, run};

}  // namespace vise::tools
