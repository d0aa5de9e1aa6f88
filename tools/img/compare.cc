// vise-img compare.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'f', "a-format", "FORMAT", "format of the first image; else it is found out"},
    {key::left_format, "left-format", "FORMAT", "the same"},
    {'F', "b-format", "FORMAT", "format of the second image; else it is found out"},
    {key::right_format, "right-format", "FORMAT", "the same"},
    {'s', "strict", nullptr, "sizes and allocation must agree, too"},
    shared::source_cache,
    {'U', "force-share", nullptr, "others may write the images meanwhile"},
    {key::image_opts, "image-opts", nullptr, "both names are option strings, key=value,…"},
    shared::progress,
    shared::quiet,
    shared::object,
    shared::help,
};

enum ExitCode { same = 0, different = 1, failed = 2, status_failed = 3, read_failed = 4 };

struct Request {
  ImageArguments a, b;
  bool strict = false;
  bool quiet = false;
};

// Ends the comparison with a message and an exit code.
struct Verdict {
  int code = same;
  std::string text;
};

// One request of the two images each; several are under way at a time.
constexpr std::uint64_t step = 2 << 20;
constexpr std::uint64_t sector = 512;
constexpr unsigned steps_at_once = 4;

class Comparison {
 public:
  Comparison(Child& a, Child& b, const Request& request, Progress& progress)
      : a_(a), b_(b), strict_(request.strict), quiet_(request.quiet), progress_(progress) {}

  Task<Verdict> run();

 private:
  struct Stretch {
    bool read_a = false, read_b = false;  // else it reads as zeros
    GuestRange range;
  };
  struct StatusPair {
    BlockStatus a, b;
    std::uint64_t length = 0;
  };
  Task<BlockStatus> status_of(Child& image, std::uint64_t offset, std::uint64_t end);
  Task<StatusPair> status_at(std::uint64_t offset, std::uint64_t end);
  Task<void> compare_batch(std::vector<Stretch> batch);
  Task<void> compare_stretch(Stretch stretch);
  Task<Verdict> walk(std::uint64_t from, std::uint64_t end);
  void report_difference(std::uint64_t offset);

  Child& a_;
  Child& b_;
  bool strict_;
  bool quiet_;
  Progress& progress_;
  BlockStatus known_a_, known_b_;
  std::uint64_t known_a_end_ = 0, known_b_end_ = 0;
  std::uint64_t difference_ = UINT64_MAX;  // the first one found so far
  std::uint64_t moved_ = 0;
  std::exception_ptr failure_;
  std::uint64_t failure_offset_ = UINT64_MAX;
};

// The status of one image at `offset`, from the last answer where that still holds.
Task<BlockStatus> Comparison::status_of(Child& image, std::uint64_t offset, std::uint64_t end) {
  const bool is_a = &image == &a_;
  BlockStatus& known = is_a ? known_a_ : known_b_;
  std::uint64_t& known_end = is_a ? known_a_end_ : known_b_end_;
  const std::uint64_t size = image.size();
  if (offset >= size) {
    BlockStatus beyond;
    beyond.zero = true;
    beyond.length = end - offset;
    co_return beyond;
  }
  if (offset >= known_end) {
    const GuestRange range{GuestOffset(offset), std::min(end, size) - offset};
    known = co_await block_status(image.node(), range);
    known_end = offset + std::min(known.length, range.length);
  }
  BlockStatus status = known;
  status.length = known_end - offset;
  co_return status;
}

Task<Comparison::StatusPair> Comparison::status_at(std::uint64_t offset, std::uint64_t end) {
  StatusPair pair;
  pair.a = co_await status_of(a_, offset, end);
  pair.b = co_await status_of(b_, offset, end);
  pair.length = std::min({pair.a.length, pair.b.length, end - offset});
  co_return pair;
}

void Comparison::report_difference(std::uint64_t offset) {
  difference_ = std::min(difference_, offset / sector * sector);
}

Task<void> Comparison::compare_stretch(Stretch stretch) {
  const std::uint64_t offset = stretch.range.start.bytes();
  const std::size_t length = stretch.range.length;
  Buffer a(stretch.read_a ? length : 0);
  Buffer b(stretch.read_b ? length : 0);
  try {
    if (stretch.read_a) co_await a_.read(stretch.range.start, IoVec(a.span()));
    if (stretch.read_b) co_await b_.read(stretch.range.start, IoVec(b.span()));
  } catch (...) {
    if (offset < failure_offset_) {
      failure_offset_ = offset;
      failure_ = std::current_exception();
    }
    co_return;
  }
  moved_ += length;
  for (std::size_t at = 0; at < length;) {
    const std::size_t part = std::min<std::size_t>(length - at, sector - (offset + at) % sector);
    bool equal = true;
    if (stretch.read_a && stretch.read_b) {
      equal = std::memcmp(a.data() + at, b.data() + at, part) == 0;
    } else {
      equal = is_zero((stretch.read_a ? a : b).span().subspan(at, part));
    }
    if (!equal) {
      report_difference(offset + at);
      co_return;
    }
    at += part;
  }
}

Task<void> Comparison::compare_batch(std::vector<Stretch> batch) {
  TaskScope scope;
  for (const Stretch& stretch : batch) scope.spawn(compare_stretch(stretch));
  co_await scope.join();
}

Task<Verdict> Comparison::walk(std::uint64_t from, std::uint64_t end) {
  const std::uint64_t whole = std::max(a_.size(), b_.size());
  for (std::uint64_t position = from; position < end;) {
    std::vector<Stretch> batch;
    std::uint64_t strict_difference = UINT64_MAX;
    while (position < end && batch.size() < steps_at_once) {
      const StatusPair pair = co_await status_at(position, end);
      const BlockStatus& a = pair.a;
      const BlockStatus& b = pair.b;
      if (strict_ && (a.data != b.data || a.zero != b.zero || a.allocated != b.allocated)) {
        strict_difference = position;
        break;
      }
      const bool both_empty = a.zero && b.zero;
      const std::uint64_t length = both_empty ? pair.length : std::min(pair.length, step);
      if (!both_empty) {
        batch.push_back({!a.zero, !b.zero, {GuestOffset(position), length}});
      }
      position += length;
      if (both_empty && batch.empty() && whole > 0) {
        progress_.set(static_cast<double>(position) / static_cast<double>(whole), moved_);
      }
    }
    co_await compare_batch(std::move(batch));
    if (difference_ < failure_offset_) {
      co_return Verdict{different, fmt::format("Content mismatch at offset {}!", difference_)};
    }
    if (failure_) std::rethrow_exception(failure_);
    if (strict_difference != UINT64_MAX) {
      co_return Verdict{different, fmt::format("Strict mode: Offset {} block status mismatch!",
                                               strict_difference)};
    }
    progress_.set(static_cast<double>(position) / static_cast<double>(whole), moved_);
  }
  co_return Verdict{same, "Images are identical."};
}

Task<Verdict> Comparison::run() {
  const std::uint64_t common = std::min(shown_size(a_.size()), shown_size(b_.size()));
  const std::uint64_t whole = std::max(shown_size(a_.size()), shown_size(b_.size()));
  if (strict_ && common != whole) {
    co_return Verdict{different, "Strict mode: Image size mismatch!"};
  }
  Verdict verdict = co_await walk(0, common);
  if (verdict.code != same || common == whole) co_return verdict;
  // What the longer image has more must read as zeros.
  if (!quiet_) print("Warning: Image size mismatch!\n");
  verdict = co_await walk(common, whole);
  co_return verdict;
}

Task<int> compare(ImageSession& session, const Request& request, LongWork& work) {
  Child* a = co_await session.open(request.a);
  Child* b = co_await session.open(request.b);
  Progress& progress = work.progress();
  progress.start();
  Comparison comparison(*a, *b, request, progress);
  Verdict verdict;
  try {
    verdict = co_await comparison.run();
  } catch (const Error& error) {
    print_error(session.program(), error);
    verdict.code = read_failed;
  }
  if (verdict.code != read_failed) {
    if (verdict.code == same) progress.complete();
    if (!request.quiet) print(verdict.text + "\n");
  }
  progress.end();
  co_return verdict.code;
}

Request read_request(const Arguments& arguments) {
  Request request;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key == 'f' || option.key == key::left_format) request.a.format = option.value;
    if (option.key == 'F' || option.key == key::right_format) request.b.format = option.value;
  }
  request.a.filename = arguments.operands[0];
  request.b.filename = arguments.operands[1];
  for (ImageArguments* image : {&request.a, &request.b}) {
    image->image_opts = arguments.has(key::image_opts);
    image->force_share = arguments.has('U');
    image->cache = cache_argument(arguments, 'T');
  }
  request.strict = arguments.has('s');
  request.quiet = arguments.has('q');
  return request;
}

// Everything that goes wrong before the first byte is compared is 2, but a wrong command line is 1.
int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 2, 2, "two image file names");
  try {
    const Request request = read_request(arguments);
    return run_long_session(program, arguments, LongWork::OnInterrupt::die, compare, request);
  } catch (const Error& error) {
    print_error(program, error);
    return failed;
  }
}

}  // namespace

constexpr Subcommand compare_command = {
    "compare", "FILE1 FILE2", "tells whether two images have the same content", options, run};

}  // namespace vise::tools
