// open, close, reopen, flush, truncate, length, discard: commands on the image as a whole.
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "tools/common/shared_options.h"
#include "tools/common/sizes.h"
#include "tools/io/request.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise::tools {

namespace {

bool discard_mode(const std::string& name) {
  if (name == "unmap" || name == "on") return true;
  if (name == "ignore" || name == "off") return false;
  throw Error(EINVAL,
              fmt::format("Invalid discard mode '{}': must be ignore, off, unmap or on", name));
}

std::string joined_options(const Arguments& arguments) {
  std::string text;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'o') continue;
    if (!text.empty()) text += ',';
    text += option.value;
  }
  return text;
}

}  // namespace

void apply_image_option(const Arguments::Option& option, ImageArguments& image) {
  switch (option.key) {
    case 'r':
      image.read_only = true;
      break;
    case 'n':
      image.cache = parse_cache_mode("none");
      break;
    case 't':
      image.cache = parse_cache_mode(option.value);
      break;
    case 'd':
      image.discard_unmap = discard_mode(option.value);
      break;
    case 'U':
      image.force_share = true;
      break;
    case 'k':
      image.aio = "native";
      break;
    case 'i':
      image.aio = option.value;
      break;
    case 's':
      image.temporary_overlay = true;
      break;
    case 'C':
      image.copy_on_read = true;
      break;
    default:
      break;
  }
}

Task<void> run_open(Call& call) {
  IoState& state = call.state;
  if (state.image() != nullptr) throw Error(EBUSY, "file open already, try 'help close'");
  const Arguments& arguments = call.arguments;
  if (arguments.operands.size() > 1) call.fail_with_usage();
  ImageArguments image;
  image.read_only = false;
  image.discard_unmap = true;
  for (const Arguments::Option& option : arguments.options) apply_image_option(option, image);
  if (!arguments.operands.empty()) image.filename = arguments.operands[0];
  const std::string options = joined_options(arguments);
  if (state.image_opts && !arguments.operands.empty()) {
    if (!options.empty()) image.filename += "," + options;
    image.image_opts = true;
  } else if (!options.empty()) {
    image.options = image_options(state.program(), options);
  }
  // Not within the statement that awaits: g++ 12 frees the temporaries of its ?: twice.
  std::string context = "can't open";
  if (!arguments.operands.empty()) context += fmt::format(" '{}'", arguments.operands[0]);
  Task<void> opening = state.open_image(std::move(image));
  co_await std::move(opening).context(std::move(context));
}

Task<void> run_close(Call& call) { co_await call.state.close_image(); }

namespace {

// What reopen is to change.
struct Reopening {
  std::optional<bool> read_only;
  std::optional<CacheMode> cache;
  Value::Dict options;
};

Reopening reopening(const Call& call) {
  const Arguments& arguments = call.arguments;
  if (!arguments.operands.empty()) call.fail_with_usage();
  if (arguments.has('r') && arguments.has('w'))
    throw Error(EINVAL, "Only one of -r and -w can be given");
  Reopening result;
  if (arguments.has('r') || arguments.has('w')) result.read_only = arguments.has('r');
  if (const std::string* name = arguments.last('c')) result.cache = parse_cache_mode(*name);
  const std::string text = joined_options(arguments);
  if (text.empty()) return result;
  result.options = image_options(call.state.program(), text);
  if (const std::optional<Value> value = result.options.take("read-only")) {
    if (result.read_only) throw Error(EINVAL, "-r and -w cannot be used with 'read-only' in -o");
    result.read_only = parse_bool(value->as_string());
  }
  if (result.cache && result.options.contains("cache")) {
    throw Error(EINVAL, "-c cannot be used with cache options in -o");
  }
  return result;
}

Task<void> switch_image(IoState& state, bool read_only) {
  Child& image = *state.image();
  co_await state.outstanding().join();
  if (read_only == image.node().read_only()) co_return;
  Permissions wanted = image.permissions();
  wanted.uses = PermissionSet(Permission::consistent_read);
  if (read_only) co_await image.set_permissions(wanted);
  co_await state.session().graph().reopen(image.node(), read_only);
  wanted.uses |= PermissionSet(Permission::write) | Permission::resize;
  if (!read_only) co_await image.set_permissions(wanted);
}

}  // namespace

Task<void> run_reopen(Call& call) {
  Reopening change = reopening(call);
  Graph& graph = call.state.session().graph();
  CacheMode& cache = call.state.image_arguments().cache;
  if (change.cache) {
    if (change.cache->direct != cache.direct) {
      throw Error(ENOTSUP, "The image cannot switch to or from the host's cache while it is open");
    }
    change.options.set("cache.no-flush", change.cache->no_flush);
  }
  graph.change_options(call.state.image_node(), std::move(change.options));
  if (change.cache) cache = *change.cache;
  if (change.read_only) co_await switch_image(call.state, *change.read_only);
}

Task<void> run_flush(Call& call) { co_await call.state.image()->flush(); }

Task<void> run_truncate(Call& call) {
  const Arguments& arguments = call.arguments;
  if (arguments.operands.size() != 1) call.fail_with_usage();
  TruncateOptions options;
  if (const std::string* mode = arguments.last('m')) {
    options.preallocation = parse_preallocation(*mode);
  }
  const std::uint64_t size = call.size_operand(0);
  co_await call.state.image()->truncate(size, options);
}

Task<void> run_length(Call& call) {
  const std::uint64_t size = shown_size(call.state.image()->size());
  print(io_size_text(static_cast<double>(size)) + "\n");
  co_return;
}

Task<void> run_discard(Call& call) {
  if (call.arguments.operands.size() != 2) call.fail_with_usage();
  const std::uint64_t offset = call.size_operand(0);
  const std::uint64_t length = call.size_operand(1);
  check_request_length(call, length, 1);
  const Stopwatch watch;
  try {
    co_await call.state.image()->discard({GuestOffset(offset), length});
  } catch (const Error& error) {
    fail_request(call.state, "discard", error);
  }
  print(report_text({"discard", offset, length, length, watch.elapsed()},
                    report_style(call.arguments)));
}

}  // namespace vise::tools
