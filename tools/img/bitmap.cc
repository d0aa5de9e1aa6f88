// vise-img bitmap.
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "graph/bitmaps.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {key::bitmap_add, "add", nullptr, "make BITMAP, which records from then on"},
    {key::bitmap_remove, "remove", nullptr, "remove it"},
    {key::bitmap_clear, "clear", nullptr, "forget what it has recorded"},
    {key::bitmap_enable, "enable", nullptr, "let it record"},
    {key::bitmap_disable, "disable", nullptr, "let it record no longer"},
    {key::bitmap_merge, "merge", "SOURCE", "add what the bitmap SOURCE has recorded"},
    {'g', "granularity", "SIZE", "bytes per bit, for --add"},
    {'b', "source-file", "FILE", "where SOURCE is, for --merge; else in the same image"},
    {'F', "source-format", "FORMAT", "the format of that file; else it is found out"},
    shared::format,
    shared::image_opts,
    shared::object,
    shared::help,
};

struct Action {
  int key;
  std::string source;  // of a merge
};

struct Request {
  ImageArguments image;
  std::optional<ImageArguments> source;  // nothing: the image itself
  std::string bitmap;
  std::vector<Action> actions;  // in this order
  std::optional<std::uint64_t> granularity;
};

std::string_view name_of(int action) {
  for (const OptionSpec& spec : options) {
    if (spec.key == action) return spec.long_name;
  }
  return {};
}

Task<void> merge(ImageSession& session, const Request& request, Node& node, std::string name) {
  if (!request.source) {
    merge_bitmap(node, request.bitmap, get_bitmap(node, name));
    co_return;
  }
  Child* source = co_await session.open(*request.source);
  std::exception_ptr failure;
  try {
    merge_bitmap(node, request.bitmap, get_bitmap(source->node(), name));
  } catch (...) {
    failure = std::current_exception();
  }
  co_await session.close(source);
  if (failure) std::rethrow_exception(failure);
}

Task<void> perform(ImageSession& session, const Request& request, Node& node, Action action) {
  const std::string& name = request.bitmap;
  switch (action.key) {
    case key::bitmap_add:
      add_bitmap(node, {.name = name, .granularity = request.granularity, .persistent = true});
      break;
    case key::bitmap_remove:
      co_await remove_bitmap(node, name);
      break;
    case key::bitmap_clear:
      clear_bitmap(node, name);
      break;
    case key::bitmap_enable:
      enable_bitmap(node, name);
      break;
    case key::bitmap_disable:
      disable_bitmap(node, name);
      break;
    default:
      co_await merge(session, request, node, std::move(action.source));
  }
}

Task<int> bitmap(ImageSession& session, const Request& request) {
  Child* root = co_await session.open(request.image);
  for (const Action& action : request.actions) {
    co_await perform(session, request, root->node(), action)
        .context(fmt::format("--{} of bitmap '{}' failed", name_of(action.key), request.bitmap));
  }
  co_await session.close(root);
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 2, 2, "the names of an image file and a bitmap");
  Request request;
  request.image = writable_image_argument(arguments);
  request.image.open_backing = false;
  request.bitmap = arguments.operands[1];
  for (const Arguments::Option& option : arguments.options) {
    if (option.key >= key::bitmap_add && option.key <= key::bitmap_merge) {
      request.actions.push_back({option.key, option.value});
    }
  }
  if (request.actions.empty()) {
    throw UsageError("Give --add, --remove, --clear, --enable, --disable or --merge");
  }
  if (const std::string* text = arguments.last('g')) {
    if (!arguments.has(key::bitmap_add)) throw UsageError("-g (--granularity) needs --add");
    request.granularity = size_argument(*text, "granularity");
  }
  if (arguments.has('b') && !arguments.has(key::bitmap_merge)) {
    throw UsageError("-b (--source-file) needs --merge");
  }
  if (arguments.has('F') && !arguments.has('b')) {
    throw UsageError("-F (--source-format) needs -b (--source-file)");
  }
  if (const std::string* file = arguments.last('b')) {
    ImageArguments source;
    source.filename = *file;
    source.format = arguments.value_or('F', "");
    source.open_backing = false;
    request.source = std::move(source);
  }
  return run_session(program, arguments, bitmap, request);
}

}  // namespace

constexpr Subcommand bitmap_command = {"bitmap", "FILE BITMAP",
                                       "makes, changes and removes dirty bitmaps", options, run};

}  // namespace vise::tools
