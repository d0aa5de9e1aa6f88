#include "tools/common/shared_options.h"

#include <fmt/format.h>

#include <cerrno>

#include "vise/error.h"

namespace vise::tools {

ImageArguments image_argument(const Arguments& arguments, std::size_t index) {
  ImageArguments image;
  image.filename = arguments.operands.at(index);
  image.format = arguments.value_or('f', "");
  image.image_opts = arguments.has(key::image_opts);
  image.force_share = arguments.has('U');
  return image;
}

ImageArguments writable_image_argument(const Arguments& arguments, std::size_t index) {
  ImageArguments image = image_argument(arguments, index);
  image.force_share = false;
  image.read_only = false;
  image.discard_unmap = true;
  image.cache = cache_argument(arguments, 't');
  return image;
}

CacheMode cache_argument(const Arguments& arguments, int key) {
  return parse_cache_mode(arguments.value_or(key, "writeback"));
}

std::vector<std::string> option_lists(const Arguments& arguments) {
  std::vector<std::string> lists;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key == 'o') lists.push_back(option.value);
  }
  return lists;
}

Progress::Options progress_options(const Arguments& arguments) {
  const bool json = arguments.value_or(key::output, "") == "json";
  return {.show = arguments.has('p'), .quiet = arguments.has('q'), .out = json ? stderr : stdout};
}

Preallocation parse_preallocation(std::string_view text) {
  if (text == "off") return Preallocation::off;
  if (text == "metadata") return Preallocation::metadata;
  if (text == "falloc") return Preallocation::falloc;
  if (text == "full") return Preallocation::full;
  throw Error(EINVAL, fmt::format("Invalid preallocation mode '{}': must be off, metadata, falloc "
                                  "or full",
                                  text));
}

}  // namespace vise::tools
