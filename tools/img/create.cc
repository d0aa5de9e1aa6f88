// vise-img create.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "graph/file_names.h"
#include "tools/common/creation.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "util/keyval.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'f', "format", "FORMAT", "format of the new image, raw if not given"},
    {'o', "options", "OPTIONS", "creation options, key=value,…; 'help' lists them"},
    {'b', "backing", "FILE", "the new image takes what it does not hold from FILE"},
    {'F', "backing-format", "FORMAT", "format of the backing file"},
    {'u', "backing-unsafe", nullptr, "do not open the backing file; needs SIZE"},
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  std::string filename;
  std::string format;
  std::vector<std::string> option_lists;
  std::optional<std::string> backing, backing_format, size;
  bool unsafe = false;
  bool quiet = false;
};

Request read_request(const Arguments& arguments) {
  expect_operands(arguments, 1, 2, "an image file name");
  Request request;
  request.filename = arguments.operands[0];
  if (arguments.operands.size() > 1) request.size = arguments.operands[1];
  request.format = arguments.value_or('f', "raw");
  request.option_lists = option_lists(arguments);
  if (const std::string* name = arguments.last('b')) request.backing = *name;
  if (const std::string* name = arguments.last('F')) request.backing_format = *name;
  request.unsafe = arguments.has('u');
  request.quiet = arguments.has('q');
  return request;
}

std::optional<std::string> string_option(const Value::Dict& options, std::string_view name) {
  const Value* value = options.find(name);
  if (value == nullptr) return std::nullopt;
  return value->as_string();
}

// Opens the backing image as the new one will, for its size and to see that it is there.
Task<std::uint64_t> backing_size(ImageSession& session, std::string filename, std::string backing,
                                 std::optional<std::string> format) {
  ImageArguments image;
  const bool has_prefix = backing.starts_with(json_prefix) || !protocol_prefix(backing).empty();
  image.filename = has_prefix ? backing : resolve_relative(filename, backing);
  image.format = format.value_or("");
  image.force_share = true;  // only its size is asked for, so it may be in use
  Child* root = co_await session.open(std::move(image));
  const std::uint64_t size = root->size();
  const std::string detected(root->node().type().name);
  co_await session.close(root);
  if (!format) {
    throw Error(EINVAL, "A backing file needs its format (-F or backing_fmt)")
        .with_hint(fmt::format("The format was found to be {}", detected));
  }
  co_return size;
}

void check_backing(const CreationTypes& types, const Value::Dict& options,
                   const std::string& filename) {
  const std::optional<std::string> backing = string_option(options, "backing_file");
  if (!backing) return;
  if (backing->empty()) throw Error(EINVAL, "The name of the backing file is empty");
  if (*backing == filename) throw Error(EINVAL, "An image cannot be its own backing file");
  if (!types.format->supports_backing) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no backing files", types.format->name));
  }
}

// The size of the new image, from the operand, the options or the backing file.
Task<std::uint64_t> image_size(ImageSession& session, const Request& request,
                               const Value::Dict& options) {
  std::optional<std::uint64_t> size;
  if (request.size) size = size_argument(*request.size, "image size");
  if (const Value* given = options.find("size")) {
    if (size) throw Error(EINVAL, "The image size is given twice");
    size = given->as_uint();
    if (*size > INT64_MAX) {
      throw Error(ERANGE, fmt::format("Invalid image size: must be from 0 to {}", INT64_MAX));
    }
  }
  const std::optional<std::string> backing = string_option(options, "backing_file");
  if (backing && !request.unsafe) {
    const std::optional<std::string> format = string_option(options, "backing_fmt");
    const std::uint64_t found = co_await backing_size(session, request.filename, *backing, format)
                                    .context("Could not open the backing image");
    if (!size) size = found;
  }
  if (!size) throw Error(EINVAL, "The size of the new image is missing");
  co_return *size;
}

Task<int> create(ImageSession& session, const Request& request, LongWork& work) {
  DriverTable& drivers = session.context().drivers();
  const CreationTypes types = creation_types(drivers, request.format, request.filename);
  Value::Dict options = parse_creation_options(types, request.option_lists);
  if (request.backing) options.set("backing_file", *request.backing);
  if (request.backing_format) options.set("backing_fmt", *request.backing_format);
  check_backing(types, options, request.filename);
  const std::uint64_t size = co_await image_size(session, request, options);
  options.set("size", size);
  if (!request.quiet) print(formatting_line(types, request.filename, options));
  const std::uint64_t whole_sectors = align_up(size, 512);
  const std::string path = file_path(request.filename, drivers);
  if (access(path.c_str(), F_OK) != 0) work.remove_when_interrupted(path);
  co_await create_image(session.graph(), types, request.filename, whole_sectors,
                        std::move(options));
  co_return 0;
}

Task<int> named_create(ImageSession& session, const Request& request, LongWork& work) {
  co_return co_await create(session, request, work).context(request.filename);
}

int run(const Program& program, const Arguments& arguments) {
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'o' || !asks_for_help(option.value)) continue;
    DriverTable drivers;
    std::optional<std::string> filename;
    if (!arguments.operands.empty()) filename = arguments.operands[0];
    const CreationTypes types = creation_types(drivers, arguments.value_or('f', "raw"), filename);
    print(creation_help(types, filename.has_value()));
    return 0;
  }
  const Request request = read_request(arguments);
  return run_long_session(program, arguments, LongWork::OnInterrupt::remove, named_create, request);
}

}  // namespace

constexpr Subcommand create_command = {"create", "FILE [SIZE]", "makes a new image", options, run};

}  // namespace vise::tools
