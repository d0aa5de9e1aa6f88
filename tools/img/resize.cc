// vise-img resize.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {key::shrink, "shrink", nullptr, "the image may become smaller; what is cut off is lost"},
    {key::preallocation, "preallocation", "off|metadata|falloc|full", "space for what is added"},
    shared::format,
    shared::image_opts,
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  enum class Change { set, add, subtract } change = Change::set;
  std::uint64_t size = 0;  // bytes
  Preallocation preallocation = Preallocation::off;
  bool shrink = false;
  bool quiet = false;
};

std::uint64_t new_size(const Request& request, std::uint64_t old_size) {
  std::uint64_t size = request.size;
  if (request.change == Request::Change::add) {
    const auto sum = checked::add(old_size, request.size);
    if (!sum || *sum > INT64_MAX) {
      throw Error(EINVAL, fmt::format("The new size would exceed {} bytes", INT64_MAX));
    }
    size = *sum;
  }
  if (request.change == Request::Change::subtract) {
    size = old_size > request.size ? old_size - request.size : 0;
  }
  if (size == 0) throw Error(EINVAL, "The new size must be more than 0");
  return size;
}

Task<int> resize(ImageSession& session, const Request& request) {
  Child* root = co_await session.open(request.image);
  const std::uint64_t old_size = shown_size(root->size());
  std::uint64_t size = new_size(request, old_size);
  if (root->node().type().name == "raw") size = align_up(size, 512);
  if (size <= old_size && request.preallocation != Preallocation::off) {
    throw Error(EINVAL, fmt::format("--preallocation is for images that grow: {} bytes are no more "
                                    "than the {} the image has",
                                    size, old_size));
  }
  if (size < old_size && !request.shrink) {
    print_warning(session.program(),
                  "What lies beyond the new end of an image is lost when it shrinks");
    throw Error(EINVAL, "The image would shrink; --shrink says that it may");
  }
  TruncateOptions how;
  how.preallocation = request.preallocation;
  how.allow_shrink = request.shrink;
  co_await root->truncate(size, how);
  co_await root->flush();
  co_await session.close(root);
  if (!request.quiet) print("Image resized.\n");
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 2, 2, "an image file name and a size");
  Request request;
  request.image = writable_image_argument(arguments);
  std::string size = arguments.operands[1];
  if (size.starts_with('+')) request.change = Request::Change::add;
  if (size.starts_with('-')) request.change = Request::Change::subtract;
  if (request.change != Request::Change::set) size.erase(0, 1);
  request.size = size_argument(size, "image size");
  request.preallocation = parse_preallocation(arguments.value_or(key::preallocation, "off"));
  request.shrink = arguments.has(key::shrink);
  request.quiet = arguments.has('q');
  return run_session(program, arguments, resize, request);
}

// A size that begins with '-' is no option: it stands behind the file name, and no option begins
// with a digit. It is moved behind "--", where nothing is one.
std::vector<std::string> move_negative_size(std::vector<std::string> words) {
  for (std::size_t i = 1; i < words.size() && words[i - 1] != "--"; ++i) {
    const std::string& word = words[i];
    const bool is_size = word.size() > 1 && word[0] == '-' &&
                         std::string_view("0123456789.").find(word[1]) != std::string_view::npos;
    if (!is_size || words[i - 1].starts_with('-')) continue;
    std::string size = word;
    words.erase(words.begin() + static_cast<std::ptrdiff_t>(i));
    const bool has_end = std::ranges::find(words, "--") != words.end();
    if (!has_end) words.emplace_back("--");
    words.push_back(std::move(size));
    break;
  }
  return words;
}

}  // namespace

constexpr Subcommand resize_command = {
    "resize", "FILE [+|-]SIZE", "changes the size of an image", options, run, move_negative_size};

}  // namespace vise::tools
