// vise-img compress.
#include <fmt/format.h>

#include <optional>

#include "copy/compress_in_place.h"
#include "graph/chain.h"
#include "graph/image_info.h"
#include "qapi/qapi-types.h"
#include "tools/common/key_order.h"
#include "tools/common/shared_options.h"
#include "tools/common/sizes.h"
#include "tools/img/command.h"
#include "util/json.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    shared::progress,
    shared::quiet,
    {'r', "rate", "RATE", "read at most so many bytes per second"},
    {key::level, "level", "LEVEL",
     "of compression: 1 (fast) to 12 (zlib) or 19 (zstd), or fastest"},
    {key::compact, "compact", nullptr, "move clusters together, so that the file gets shorter"},
    {'m', "parallel", "NUMBER", "requests at a time, 1 to 16; 8 if not given"},
    shared::output,
    shared::format,
    shared::image_opts,
    shared::cache,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  InPlaceOptions options;
  std::uint64_t rate = 0;  // bytes per second, 0: no limit
  OutputFormat output = OutputFormat::human;
  bool show_progress = false;
  bool quiet = false;
};

struct Sizes {
  std::uint64_t file = 0;  // bytes
  std::optional<std::uint64_t> allocated;
};

struct Result {
  InPlaceProgress done;
  Sizes before, after;
};

Sizes sizes_of(const Node& node) {
  Sizes sizes;
  for (const Child* child : node.children()) {
    if (child->role() == EdgeRole::storage) sizes.file = child->size();
  }
  sizes.allocated = allocated_bytes(node);
  return sizes;
}

Task<InPlaceProgress> compress_node(ImageSession& session, Node& node, const Request& request,
                                    Progress& progress) {
  const Permissions wanted{PermissionSet(Permission::consistent_read) | Permission::write_unchanged,
                           Permissions::all()};
  std::unique_ptr<Child> image = co_await session.graph().attach(
      nullptr, std::string("compress"), EdgeRole::root, node.shared_from_this(), wanted);
  CopyControl control;
  control.set_rate(request.rate);
  InPlaceRequest work;
  work.image = image.get();
  work.options = request.options;
  work.control = &control;
  work.on_progress = [&progress](const InPlaceProgress& state) {
    progress.set(state.fraction, state.compressed);
  };
  InPlaceProgress done;
  std::exception_ptr failure;
  try {
    done = co_await compress_in_place(std::move(work));
  } catch (...) {
    failure = std::current_exception();
  }
  co_await image->detach();
  if (failure) std::rethrow_exception(failure);
  co_return done;
}

std::string human_text(const Result& result) {
  const auto line = [](std::string_view what, std::uint64_t before, std::uint64_t after) {
    return fmt::format("{}: {} before, {} now ({} bytes)\n", what, image_size_text(before),
                       image_size_text(after), after);
  };
  std::string text =
      fmt::format("Compressed {} of the disk in place.\n", image_size_text(result.done.compressed));
  text += line("file length", result.before.file, result.after.file);
  if (result.before.allocated && result.after.allocated) {
    text += line("disk size", *result.before.allocated, *result.after.allocated);
  }
  return text;
}

std::string json_text(const Result& result, const Request& request, std::string_view format) {
  const auto maybe = [](std::optional<std::uint64_t> bytes) {
    return bytes ? std::optional(static_cast<std::int64_t>(*bytes)) : std::nullopt;
  };
  qapi::ImageCompress value;
  value.filename = request.image.filename;
  value.format = format;
  value.compressed = static_cast<std::int64_t>(result.done.compressed);
  value.moved = static_cast<std::int64_t>(result.done.moved);
  value.file_size_before = static_cast<std::int64_t>(result.before.file);
  value.file_size_after = static_cast<std::int64_t>(result.after.file);
  value.actual_size_before = maybe(result.before.allocated);
  value.actual_size_after = maybe(result.after.allocated);
  return json::print(in_printing_order(to_value(value))) + "\n";
}

Task<int> compress(ImageSession& session, const Request& request) {
  Child* root = co_await session.open(request.image);
  Node& node = image_of(root->node());
  const std::string format(node.type().name);
  Result result;
  result.before = sizes_of(node);
  Progress progress({.show = request.show_progress, .quiet = request.quiet});
  const InPlaceProgress done = co_await compress_node(session, node, request, progress);
  result.done = done;
  result.after = sizes_of(node);
  co_await session.close(root);
  progress.complete();
  progress.end();
  if (!request.quiet) {
    print(request.output == OutputFormat::json ? json_text(result, request, format)
                                               : human_text(result));
  }
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.image.filename = arguments.operands[0];
  request.image.format = arguments.value_or('f', "");
  request.image.image_opts = arguments.has(key::image_opts);
  request.image.read_only = false;
  request.image.discard_unmap = true;
  request.image.cache = parse_cache_mode(arguments.value_or('t', "writeback"));
  request.output = output_format(arguments);
  request.quiet = arguments.has('q');
  request.show_progress = arguments.has('p') && !request.quiet;
  request.options.compact = arguments.has(key::compact);
  if (const std::string* text = arguments.last(key::level)) {
    request.options.level = level_argument(*text);
  }
  if (const std::string* text = arguments.last('m')) {
    request.options.chunks_in_flight =
        static_cast<unsigned>(number_argument(*text, "number of requests", 1, 16));
  }
  if (const std::string* text = arguments.last('r')) request.rate = size_argument(*text, "rate");
  ImageSession session(program);
  if (!add_objects(arguments, session.context().objects())) return 0;
  return session.run(compress(session, request));
}

}  // namespace

constexpr Subcommand compress_command = {"compress", "FILE",
                                         "compresses what an image holds in place", options, run};

}  // namespace vise::tools
