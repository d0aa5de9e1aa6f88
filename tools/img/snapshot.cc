// vise-img snapshot.
#include <fmt/format.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "graph/drained.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshot_list.h"
#include "tools/common/snapshots.h"
#include "tools/img/command.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'l', "list", nullptr, "list the snapshots; so without -a, -c or -d"},
    {'a', "apply", "SNAPSHOT", "make the disk what it was (an ID or a name)"},
    {'c', "create", "NAME", "create a snapshot"},
    {'d', "delete", "NAME", "delete the snapshot of that name"},
    shared::format,
    shared::image_opts,
    {'U', "force-share", nullptr, "others may write the image meanwhile; only with -l"},
    shared::quiet,
    shared::object,
    shared::help,
};

constexpr std::size_t longest_name = 255;  // bytes, as other tools cut it

struct Request {
  ImageArguments image;
  int action = 'l';
  std::string name;
};

Task<void> list(Node& node) {
  const DriverInfo info = co_await node.driver().info();
  if (!info.snapshots.is_list() || info.snapshots.as_list().empty()) co_return;
  print(snapshot_list_text(info.snapshots.as_list(), 0));
}

NewSnapshot new_snapshot(const std::string& name) {
  std::timespec now = {};
  (void)std::timespec_get(&now, TIME_UTC);
  NewSnapshot snapshot;
  snapshot.name = name.substr(0, longest_name);
  snapshot.seconds = static_cast<std::uint32_t>(now.tv_sec);
  snapshot.nanoseconds = static_cast<std::uint32_t>(now.tv_nsec);
  return snapshot;
}

Task<void> change(HasSnapshots& driver, const Request& request) {
  SnapshotSelector which;
  switch (request.action) {
    case 'a':
      which.word = request.name;
      return driver.apply_snapshot(std::move(which));
    case 'd':
      which.name = request.name;
      return driver.delete_snapshot(std::move(which));
    default:
      return driver.create_snapshot(new_snapshot(request.name));
  }
}

std::string context_of(const Request& request) {
  const char* const verb = request.action == 'a'   ? "apply"
                           : request.action == 'c' ? "create"
                                                   : "delete";
  return fmt::format("Could not {} snapshot '{}'", verb, request.name);
}

Task<int> snapshot(ImageSession& session, const Request& request, LongWork&) {
  Child* root = co_await session.open(request.image);
  Node& node = root->node();
  if (request.action == 'l') {
    co_await list(node);
    co_return 0;
  }
  auto* driver = find_interface<HasSnapshots>(node);
  if (driver == nullptr) {
    throw Error(ENOTSUP, fmt::format("{}: Format '{}' knows no snapshots", context_of(request),
                                     node.type().name));
  }
  const auto work = [&] { return change(*driver, request); };
  co_await while_drained(node, work).context(context_of(request));
  co_await session.close(root);
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  unsigned actions = 0;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'l' && option.key != 'a' && option.key != 'c' && option.key != 'd') continue;
    if (++actions > 1) throw UsageError("Only one of -l, -a, -c and -d can be given");
    request.action = option.key;
    request.name = option.value;
  }
  const bool lists = request.action == 'l';
  if (!lists && arguments.has('U')) throw UsageError("-U (--force-share) needs -l");
  request.image = image_argument(arguments);
  request.image.read_only = lists;
  request.image.discard_unmap = true;
  request.image.open_backing = false;
  if (lists) request.image.purpose = OpenPurpose::info;
  // Stopping in between is safe, but may leave flags for a repair to set right.
  return run_long_session(program, arguments, LongWork::OnInterrupt::finish, snapshot, request);
}

}  // namespace

constexpr Subcommand snapshot_command = {
    "snapshot", "FILE", "lists, makes, applies and deletes the snapshots inside an image", options,
    run};

}  // namespace vise::tools
