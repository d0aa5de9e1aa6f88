// vise-img info.
#include <fmt/format.h>

#include <cerrno>
#include <set>

#include "graph/file_names.h"
#include "tools/common/key_order.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "tools/img/image_info.h"
#include "util/json.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'b', "backing-chain", nullptr, "tell about all images of the backing chain"},
    shared::output,
    shared::format,
    shared::image_opts,
    shared::force_share,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  OutputFormat output;
  bool chain;
};

const std::string* string_member(const Value& info, std::string_view key) {
  const Value* value = info.as_dict().find(key);
  return value != nullptr ? &value->as_string() : nullptr;
}

// The image and, if asked for, those below it; each is opened by itself, as its name and format
// stand in the one above.
Task<Value::List> collect(ImageSession& session, const Request& request) {
  Value::List result;
  std::set<std::string> seen;
  ImageArguments image = request.image;
  for (;;) {
    const std::string name = image.filename;
    if (!seen.insert(name).second) {
      throw Error(EINVAL, fmt::format("Backing file '{}' makes an infinite loop", name));
    }
    Child* root = co_await session.open(image);
    Value info = co_await image_info(root->node());
    co_await session.close(root);
    const std::string* backing = string_member(info, "full-backing-filename");
    const std::string* format = string_member(info, "backing-filename-format");
    ImageArguments next = request.image;
    next.image_opts = false;
    next.filename = backing != nullptr ? *backing : "";
    next.format = format != nullptr ? *format : "";
    next.options = {};
    result.push_back(std::move(info));
    if (!request.chain || next.filename.empty()) break;
    image = std::move(next);
  }
  co_return result;
}

Task<int> info(ImageSession& session, const Request& request) {
  Value::List infos = co_await collect(session, request);
  if (request.output == OutputFormat::json) {
    Value value = request.chain ? Value(std::move(infos)) : std::move(infos.front());
    print(json::print(in_printing_order(std::move(value))));
    print("\n");
    co_return 0;
  }
  bool first = true;
  for (const Value& each : infos) {
    if (!first) print("\n");
    print(image_info_text(each));
    first = false;
  }
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.image = image_argument(arguments);
  request.image.open_backing = false;
  request.image.purpose = OpenPurpose::info;
  request.output = output_format(arguments);
  request.chain = arguments.has('b');
  return run_session(program, arguments, info, request);
}

}  // namespace

constexpr Subcommand info_command = {"info", "FILE", "tells about an image", options, run};

}  // namespace vise::tools
