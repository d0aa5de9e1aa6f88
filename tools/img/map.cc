// vise-img map.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'s', "start-offset", "OFFSET", "begin here"},
    {'l', "max-length", "LENGTH", "describe at most so many bytes"},
    shared::output,
    shared::format,
    shared::image_opts,
    shared::force_share,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  OutputFormat output = OutputFormat::human;
  std::uint64_t start = 0;
  std::optional<std::uint64_t> length;
};

struct Entry {
  std::uint64_t start = 0;
  BlockStatus status;

  std::uint64_t end() const { return start + status.length; }
  // Can `next` be told in one entry with this one?
  bool continues_in(const Entry& next) const {
    const BlockStatus& a = status;
    const BlockStatus& b = next.status;
    if (a.data != b.data || a.zero != b.zero || a.allocated != b.allocated || a.depth != b.depth ||
        a.compressed != b.compressed || a.file != b.file ||
        a.host.has_value() != b.host.has_value()) {
      return false;
    }
    return !a.host || *a.host + a.length == *b.host;
  }
};

class Printer {
 public:
  explicit Printer(OutputFormat output) : output_(output) {
    if (output_ == OutputFormat::human) {
      print(fmt::format("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File"));
    } else {
      print("[");
    }
  }
  void add(const Entry& entry) {
    if (output_ == OutputFormat::human) {
      add_human(entry);
    } else {
      add_json(entry);
    }
  }
  void finish() {
    if (output_ == OutputFormat::json) print("]\n");
  }

 private:
  static std::string hex(std::uint64_t value) {
    return value == 0 ? "0" : fmt::format("0x{:x}", value);
  }
  static void add_human(const Entry& entry) {
    const BlockStatus& status = entry.status;
    if (!status.data || status.zero) return;
    if (!status.host || status.file == nullptr || status.compressed) {
      throw Error(ENOTSUP,
                  fmt::format("The data at offset {} are compressed, encrypted or not stored in a "
                              "file as they are",
                              entry.start))
          .with_hint("--output=json can describe them");
    }
    print(fmt::format("{:<16}{:<16}{:<16}{}\n", hex(entry.start), hex(status.length),
                      hex(status.host->bytes()), status.file->filename()));
  }
  void add_json(const Entry& entry) {
    const BlockStatus& status = entry.status;
    fmt::memory_buffer line;
    fmt::format_to(std::back_inserter(line),
                   "{}{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, "
                   "\"zero\": {}, \"data\": {}, \"compressed\": {}",
                   first_ ? "" : ",\n", entry.start, status.length, status.depth, status.allocated,
                   status.zero, status.data, status.compressed);
    const auto out = std::back_inserter(line);
    if (status.host) fmt::format_to(out, ", \"offset\": {}", status.host->bytes());
    if (status.compressed) fmt::format_to(out, ", \"stored-length\": {}", status.stored_length);
    line.push_back('}');
    print({line.data(), line.size()});
    first_ = false;
  }

  OutputFormat output_;
  bool first_ = true;
};

// What lies at `position`; past the end of the image, up to the end of its last sector, zeros.
Task<Entry> entry_at(Child& root, std::uint64_t position, std::uint64_t end) {
  Entry entry{.start = position};
  const std::uint64_t size = root.size();
  if (position >= size) {
    if (root.size() > 0) {
      // It continues what the last byte belongs to.
      const BlockStatus last =
          co_await block_status(root.node(), {GuestOffset(root.size() - 1), 1});
      entry.status.depth = last.depth;
      if (last.host && last.file != nullptr && !last.compressed) entry.status.host = *last.host + 1;
    }
    entry.status.zero = true;
    entry.status.allocated = true;
    entry.status.length = end - position;
    co_return entry;
  }
  const GuestRange range{GuestOffset(position), std::min(end, size) - position};
  entry.status = co_await block_status(root.node(), range)
                     .context(fmt::format("Could not map the range from {} on", position));
  entry.status.length = std::min(entry.status.length, range.length);
  // A compressed extent has no one place that bytes could be read from.
  if (entry.status.compressed) entry.status.host.reset();
  co_return entry;
}

Task<int> map(ImageSession& session, const Request& request) {
  Child* root = co_await session.open(request.image);
  const std::uint64_t size = shown_size(root->size());
  const std::uint64_t start = std::min(request.start, size);
  const std::uint64_t end = start + std::min(request.length.value_or(size), size - start);
  Printer printer(request.output);
  Entry current{.start = request.start};
  for (std::uint64_t position = start; position < end;) {
    const Entry next = co_await entry_at(*root, position, end);
    position = next.end();
    if (current.status.length > 0 && current.continues_in(next)) {
      current.status.length += next.status.length;
      current.status.stored_length += next.status.stored_length;
      continue;
    }
    if (current.status.length > 0) printer.add(current);
    current = next;
  }
  const bool anything = current.status.length > 0;
  if (anything || request.output == OutputFormat::json) printer.add(current);
  printer.finish();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.image = image_argument(arguments);
  request.output = output_format(arguments);
  if (const std::string* text = arguments.last('s')) {
    request.start = size_argument(*text, "start offset");
  }
  if (const std::string* text = arguments.last('l')) {
    request.length = size_argument(*text, "max length");
  }
  return run_session(program, arguments, map, request);
}

}  // namespace

constexpr Subcommand map_command = {"map", "FILE", "lists where an image's data are stored",
                                    options, run};

}  // namespace vise::tools
