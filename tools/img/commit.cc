// vise-img commit.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "copy/copy.h"
#include "graph/chain.h"
#include "graph/drained.h"
#include "graph/held.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/chain.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'b', "base", "FILE", "the image of the chain to commit to; so -d is implied"},
    {'d', "drop", nullptr, "leave FILE as it is: it will be thrown away"},
    {'c', "compress", nullptr, "compress what is moved; else only what is compressed stays so"},
    shared::level,
    shared::recompress,
    shared::rate,
    shared::cache,
    shared::format,
    shared::image_opts,
    shared::progress,
    shared::quiet,
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments image;
  std::optional<std::string> base;
  CopyOptions copy;
  std::uint64_t rate = 0;  // bytes per second, 0: no limit
  bool drop = false;
  bool quiet = false;
};

Node& find_base(Node& top, const Request& request) {
  Node* const backing = backing_of(top);
  if (backing == nullptr) throw Error(EINVAL, "The image has no backing file");
  if (!request.base) return *backing;
  Node* const found = find_in_chain(*backing, *request.base);
  if (found == nullptr) {
    throw Error(ENOENT, fmt::format("'{}' is not in the backing chain of '{}'", *request.base,
                                    request.image.filename));
  }
  return *found;
}

void check_compression(const Child& target, int level) {
  const Limits limits = target.limits();
  if (!limits.can_compress) {
    throw Error(ENOTSUP, fmt::format("The base, of format '{}', cannot store compressed data",
                                     target.node().type().name));
  }
  codec::check_level(limits.codec, level);
}

// Writes to the base, through `target`, what the images above it hold.
Task<void> copy_to(Child& target, Child& top, Node& base, const Request& request, LongWork& work) {
  if (request.copy.compressed) check_compression(target, request.copy.level);
  if (target.size() < top.size()) co_await target.truncate(top.size());
  work.control().set_rate(request.rate);
  CopyRequest copying;
  copying.sources.push_back(&top);
  copying.base = &base;
  copying.target = &target;
  copying.options = request.copy;
  // Compressed clusters are not to be swallowed by data beside them.
  const std::uint64_t cluster = target.limits().cluster_size;
  if (cluster > 0) {
    copying.options.sparse_size = std::min(copying.options.sparse_size, cluster);
  }
  copying.options.fua = request.image.cache.writethrough;
  copying.control = &work.control();
  copying.on_progress = [&work](const CopyProgress& state) { work.show(state); };
  co_await copy(std::move(copying));
  co_await target.flush();
}

// The base is writable meanwhile.
Task<void> copy_down(ImageSession& session, Child& top, Node& base, const Request& request,
                     LongWork& work) {
  const Permissions wanted{
      PermissionSet(Permission::consistent_read) | Permission::write | Permission::resize,
      Permissions::all()};
  std::unique_ptr<Child> held = co_await session.graph().attach(
      nullptr, std::string("commit"), EdgeRole::root, base.shared_from_this(), wanted);
  co_await with_child(std::move(held),
                      [&](Child& target) { return copy_to(target, top, base, request, work); });
}

Task<void> empty(Node& top) {
  auto* driver = find_interface<HasBackingFile>(top);
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("Images of format '{}' cannot be emptied", top.type().name));
  }
  const auto work = [&] { return driver->make_empty(); };
  co_await while_drained(top, work).context("Could not empty the image");
}

Task<int> commit(ImageSession& session, const Request& request, LongWork& work) {
  Child* root = co_await session.open(request.image);
  Node& base = find_base(root->node(), request);
  const std::shared_ptr<Node> held = base.shared_from_this();
  Progress& progress = work.progress();
  progress.start();
  co_await session.graph().reopen(base, false).context("Could not open the base for writing");
  std::exception_ptr failure;
  try {
    co_await copy_down(session, *root, base, request, work);
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await session.graph().reopen(base, true);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
  if (!request.drop) co_await empty(root->node());
  co_await root->flush();
  co_await session.close(root);
  progress.complete();
  progress.end();
  if (!request.quiet) print("Image committed.\n");
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.image = writable_image_argument(arguments);
  if (const std::string* name = arguments.last('b')) request.base = *name;
  request.copy.compressed = arguments.has('c');
  request.copy.keep_compressed = true;
  request.copy.encoded = !arguments.has(key::recompress);
  if (const std::string* text = arguments.last(key::level)) {
    request.copy.level = level_argument(*text);
  }
  if (!arguments.has('c') && (arguments.has(key::level) || arguments.has(key::recompress))) {
    throw Error(EINVAL, "--level and --recompress need -c (--compress)");
  }
  if (const std::string* text = arguments.last('r')) request.rate = size_argument(*text, "rate");
  request.drop = arguments.has('d') || request.base;
  request.quiet = arguments.has('q');
  return run_long_session(program, arguments, LongWork::OnInterrupt::stop, commit, request);
}

}  // namespace

constexpr Subcommand commit_command = {
    "commit", "FILE", "moves what an image holds into its backing image", options, run};

}  // namespace vise::tools
