// open, close, flush, truncate, length, discard: commands on the image as a whole.
#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "tools/common/shared_options.h"
#include "tools/common/sizes.h"
#include "tools/io/request.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

bool discard_mode(const std::string& name) {
  if (name == "unmap" || name == "on") return true;
  if (name == "ignore" || name == "off") return false;
  throw Error(EINVAL,
              fmt::format("Invalid discard mode '{}': must be ignore, off, unmap or on", name));
}

}  // namespace

std::string joined_options(const Arguments& arguments) {
  std::string text;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'o') continue;
    if (!text.empty()) text += ',';
    text += option.value;
  }
  return text;
}

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
