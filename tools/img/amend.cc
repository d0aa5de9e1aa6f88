// vise-img amend.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "format/formats.h"
#include "graph/drained.h"
#include "tools/common/creation.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/command.h"
#include "util/keyval.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'o', "options", "OPTIONS", "what is to change, key=value,…; 'help' lists it"},
    shared::format,
    shared::image_opts,
    shared::cache,
    {key::force, "force", nullptr, "accepted, no effect: it is for keys of encrypted images"},
    shared::progress,
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  std::vector<std::string> option_lists;
  bool help = false;
};

[[noreturn]] void fail_format(std::string_view format) {
  throw Error(ENOTSUP, fmt::format("Images of format '{}' cannot be amended", format));
}

// The options of amend in the place of those of create, which are read the same way.
DriverType amended_type(std::string_view format, std::span<const CreateOption> known) {
  DriverType type{.name = format, .kind = DriverKind::format, .open = nullptr};
  type.create_options = known;
  return type;
}

void print_help(std::string_view format, std::span<const CreateOption> known) {
  const DriverType type = amended_type(format, known);
  CreationTypes types;
  types.format = &type;
  std::string text = creation_help(types, true);
  text.erase(0, text.find('\n'));
  print(fmt::format("Amend options for '{}':{}", format, text));
}

Task<int> amend(ImageSession& session, const Request& request, LongWork& work) {
  Child* root = co_await session.open(request.image);
  Node& node = root->node();
  auto* driver = find_interface<Amendable>(node);
  if (driver == nullptr) fail_format(node.type().name);
  if (request.help) {
    print_help(node.type().name, driver->amend_options());
    co_return 0;
  }
  const DriverType type = amended_type(node.type().name, driver->amend_options());
  CreationTypes types;
  types.format = &type;
  Progress& progress = work.progress();
  progress.start();
  AmendRequest amendment;
  amendment.options = parse_creation_options(types, request.option_lists);
  amendment.on_progress = [&progress](double fraction) { progress.set(fraction); };
  const auto change = [&] { return driver->amend(std::move(amendment)); };
  co_await while_drained(node, change).context("Could not amend the image");
  co_await session.close(root);
  progress.complete();
  progress.end();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  Request request;
  request.option_lists = option_lists(arguments);
  request.help = std::ranges::any_of(request.option_lists, asks_for_help);
  if (request.option_lists.empty()) throw UsageError("Must specify options (-o)");
  const std::string format = arguments.value_or('f', "");
  if (request.help && !format.empty()) {
    const auto known = amend_options_of(format);
    if (known.empty()) fail_format(format);
    print_help(format, known);
    return 0;
  }
  expect_operands(arguments, 1, 1, "an image file name");
  request.image = writable_image_argument(arguments);
  request.image.read_only = request.help;
  return run_long_session(program, arguments, LongWork::OnInterrupt::die, amend, request);
}

}  // namespace

constexpr Subcommand amend_command = {"amend", "FILE", "changes the form of an image in place",
                                      options, run};

}  // namespace vise::tools
