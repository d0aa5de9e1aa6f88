// vise-img amend.
#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "format/formats.h"
#include "tools/common/creation.h"
#include "tools/common/objects.h"
#include "tools/common/open.h"
#include "tools/common/progress.h"
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
    {'f', "format", "FORMAT", "the image's format; else it is found out"},
    {key::image_opts, "image-opts", nullptr, "FILE is an option string, key=value,…"},
    {'t', "cache", "CACHE", "cache mode; writeback if not given"},
    {key::force, "force", nullptr, "accepted, no effect: it is for keys of encrypted images"},
    {'p', "progress", nullptr, "show progress"},
    {'q', "quiet", nullptr, "print nothing but errors"},
    {key::object, "object", "OBJECT", "an object that nodes refer to: TYPE,id=ID,…"},
    {'h', "help", nullptr, "this help"},
};

struct Request {
  ImageArguments image;
  std::vector<std::string> option_lists;
  bool help = false;
  bool show_progress = false;
  bool quiet = false;
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

Task<int> amend(ImageSession& session, const Request& request) {
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
  Progress progress({.show = request.show_progress, .quiet = request.quiet});
  AmendRequest amendment;
  amendment.options = parse_creation_options(types, request.option_lists);
  amendment.on_progress = [&progress](double fraction) { progress.set(fraction); };
  const auto work = [&] { return driver->amend(std::move(amendment)); };
  co_await while_drained(node, work).context("Could not amend the image");
  co_await session.close(root);
  progress.complete();
  progress.end();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  Request request;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'o') continue;
    request.option_lists.push_back(option.value);
    request.help = request.help || asks_for_help(option.value);
  }
  if (request.option_lists.empty()) throw UsageError("Must specify options (-o)");
  request.image.format = arguments.value_or('f', "");
  if (request.help && !request.image.format.empty()) {
    const auto known = amend_options_of(request.image.format);
    if (known.empty()) fail_format(request.image.format);
    print_help(request.image.format, known);
    return 0;
  }
  expect_operands(arguments, 1, 1, "an image file name");
  request.image.filename = arguments.operands[0];
  request.image.image_opts = arguments.has(key::image_opts);
  request.image.read_only = request.help;
  request.image.discard_unmap = true;
  request.image.cache = parse_cache_mode(arguments.value_or('t', "writeback"));
  request.quiet = arguments.has('q');
  request.show_progress = arguments.has('p') && !request.quiet;
  ImageSession session(program);
  if (!add_objects(arguments, session.context().objects())) return 0;
  return session.run(amend(session, request));
}

}  // namespace

constexpr Subcommand amend_command = {"amend", "FILE", "changes the form of an image in place",
                                      options, run};

}  // namespace vise::tools
