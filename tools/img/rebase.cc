// vise-img rebase: another backing file, without changing what the disk holds. Where the old and
// the new one differ and the image has nothing of its own, it takes over what the old one has
// (copy/difference_copy.h).
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "copy/difference_copy.h"
#include "format/formats.h"
#include "graph/chain.h"
#include "graph/drained.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/chain.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/image_operations.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'b', "backing", "FILE", "the new backing file; '' for none"},
    {'F', "backing-format", "FORMAT", "its format"},
    {'u', "backing-unsafe", nullptr, "change only the name: the content must be the same"},
    {'c', "compress", nullptr, "compress what the image takes over"},
    shared::level,
    shared::recompress,
    {'t', "cache", "CACHE", "cache mode of the image; writeback if not given"},
    {'T', "backing-cache", "CACHE", "cache mode of the new backing file; writeback if not given"},
    shared::format,
    shared::image_opts,
    {'U', "force-share", nullptr, "others may use the backing files meanwhile"},
    shared::progress,
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  ImageArguments backing;  // without file name: none
  std::string backing_name;
  std::string backing_format;
  bool unsafe = false;
  bool compress = false;
  bool as_stored =
      true;  // compressed clusters are taken over without decoding where that is possible
  int level = 0;
};

// An edge of our own to the image's old backing image, to read through.
Task<std::unique_ptr<Child>> attach_reader(ImageSession& session, Node& node) {
  const Permissions wanted{Permission::consistent_read, Permissions::all()};
  co_return co_await session.graph().attach(nullptr, std::string("old backing"), EdgeRole::root,
                                            node.shared_from_this(), wanted);
}

Task<void> take_over_differences(ImageSession& session, Child& top, const Request& request,
                                 LongWork& work) {
  Child* new_backing = nullptr;
  if (!request.backing_name.empty()) {
    ImageArguments image = request.backing;
    image.filename = backing_path(top.node(), request.backing_name);
    if (find_in_chain(top.node(), image.filename) == &top.node()) {
      throw Error(EINVAL, "An image cannot be its own backing file");
    }
    new_backing =
        co_await session.open(std::move(image)).context("Could not open the new backing file");
  }
  std::unique_ptr<Child> old_backing;
  if (Node* node = backing_of(top.node())) {
    std::unique_ptr<Child> edge = co_await attach_reader(session, *node);
    old_backing = std::move(edge);
  }
  std::exception_ptr failure;
  try {
    DifferenceRequest differences;
    differences.top = &top;
    differences.old_backing = old_backing.get();
    differences.new_backing = new_backing;
    if (old_backing && new_backing != nullptr) {
      differences.shared =
          find_in_chain(old_backing->node(), new_backing->node().protocol_filename());
    }
    differences.compressed = request.compress;
    differences.encoded = request.as_stored;
    differences.level = request.level;
    differences.control = &work.control();
    differences.on_progress = [&work](const CopyProgress& state) { work.show(state); };
    co_await copy_differences(std::move(differences));
    co_await top.flush();
  } catch (...) {
    failure = std::current_exception();
  }
  if (old_backing) co_await old_backing->detach();
  if (failure) std::rethrow_exception(failure);
}

Task<int> rebase(ImageSession& session, const Request& request, LongWork& work) {
  Child* top = co_await session.open(request.image);
  Node& node = top->node();
  auto* driver = find_interface<HasBackingFile>(node);
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no backing files", node.type().name));
  }
  if (request.compress && !top->limits().can_compress) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no compression", node.type().name));
  }
  if (request.compress) codec::check_level(top->limits().codec, request.level);
  // With -u nobody opens the backing file here, and the image could not be opened any more.
  const std::string& format = request.backing_format;
  const bool is_known = format.empty() || is_foreign_format(format) ||
                        session.context().drivers().find(format) != nullptr;
  if (!is_known) {
    throw Error(EINVAL, fmt::format("Unknown format '{}' of the backing file", format));
  }
  Progress& progress = work.progress();
  progress.start();
  if (!request.unsafe) co_await take_over_differences(session, *top, request, work);
  const auto change = [&] {
    return driver->change_backing_file(request.backing_name, request.backing_format);
  };
  co_await while_drained(node, change)
      .context(fmt::format("Could not change the backing file to '{}'", request.backing_name));
  co_await session.close(top);
  progress.complete();
  progress.end();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.unsafe = arguments.has('u');
  if (!request.unsafe && !arguments.has('b')) {
    throw UsageError("Use -b (--backing) or -u (--backing-unsafe)");
  }
  request.backing_name = arguments.value_or('b', "");
  request.backing_format = arguments.value_or('F', "");
  if (!request.backing_name.empty() && !arguments.has('F')) {
    throw Error(EINVAL, "A backing file needs its format (-F)");
  }
  request.image = writable_image_argument(arguments);
  request.image.open_backing = !request.unsafe;
  request.backing.format = request.backing_format;
  request.backing.force_share = arguments.has('U');  // it is about the backing files alone
  request.backing.cache = cache_argument(arguments, 'T');
  request.compress = arguments.has('c');
  request.as_stored = !arguments.has(key::recompress);
  if (const std::string* text = arguments.last(key::level)) request.level = level_argument(*text);
  if (!request.compress && (request.level != 0 || !request.as_stored)) {
    throw Error(EINVAL, "--level and --recompress need -c (--compress)");
  }
  return run_long_session(program, arguments, LongWork::OnInterrupt::stop, rebase, request);
}

}  // namespace

constexpr Subcommand rebase_command = {
    "rebase", "FILE", "gives an image another backing file and keeps its content", options, run};

}  // namespace vise::tools
