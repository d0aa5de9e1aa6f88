// reopen: changes how the image is opened, while it is (Graph::reopen()).
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "tools/io/command.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise::tools {

namespace {

// What is to change.
struct Reopening {
  std::optional<bool> read_only, direct, no_flush;
  std::optional<CacheMode> cache;
  Value::Dict options;  // without those above
};

std::optional<bool> take_bool(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) return std::nullopt;
  if (!value->is_string()) throw Error(EINVAL, fmt::format("Option '{}' must be on or off", name));
  return parse_bool(value->as_string());
}

Reopening reopening(const Call& call) {
  const Arguments& arguments = call.arguments;
  if (!arguments.operands.empty()) call.fail_with_usage();
  if (arguments.has('r') && arguments.has('w'))
    throw Error(EINVAL, "Only one of -r and -w can be given");
  Reopening result;
  if (arguments.has('r') || arguments.has('w')) result.read_only = arguments.has('r');
  if (const std::string* name = arguments.last('c')) {
    result.cache = parse_cache_mode(*name);
    result.direct = result.cache->direct;
    result.no_flush = result.cache->no_flush;
  }
  const std::string text = joined_options(arguments);
  if (text.empty()) return result;
  result.options = image_options(call.state.program(), text);
  if (const std::optional<bool> read_only = take_bool(result.options, "read-only")) {
    if (result.read_only) throw Error(EINVAL, "-r and -w cannot be used with 'read-only' in -o");
    result.read_only = read_only;
  }
  if (Value* cache = result.options.find("cache"); cache != nullptr && cache->is_dict()) {
    if (result.cache) throw Error(EINVAL, "-c cannot be used with cache options in -o");
    result.direct = take_bool(cache->as_dict(), "direct");
    result.no_flush = take_bool(cache->as_dict(), "no-flush");
    if (cache->as_dict().empty()) result.options.erase("cache");
  }
  return result;
}

std::vector<NodeChange> changes_of(IoState& state, Reopening change) {
  Node& node = state.image_node();
  Node& top = state.image()->node();
  const auto set = [&](std::string_view name, const std::optional<bool>& value) {
    if (value) change.options.set(name, *value);
  };
  set("read-only", change.read_only);
  set("cache.direct", change.direct);
  set("cache.no-flush", change.no_flush);
  std::vector<NodeChange> changes;
  if (&top != &node && change.read_only) {
    NodeChange above{.node = top.shared_from_this(), .others = NodeChange::Others::stay};
    above.options.set("read-only", *change.read_only);
    changes.push_back(std::move(above));
  }
  changes.push_back({.node = node.shared_from_this(),
                     .options = std::move(change.options),
                     .others = NodeChange::Others::stay});
  return changes;
}

// Rights to write are given up before the image becomes read-only, and taken after it is writable.
Task<void> reopen_image(IoState& state, std::vector<NodeChange> changes) {
  Child& image = *state.image();
  const Permissions before = image.permissions();
  Permissions reading = before;
  reading.uses = PermissionSet(Permission::consistent_read);
  Permissions writing = before;
  writing.uses |= PermissionSet(Permission::write) | Permission::resize;
  co_await image.set_permissions(reading);
  std::exception_ptr failure;
  try {
    co_await state.session().graph().reopen(std::move(changes));
  } catch (...) {
    failure = std::current_exception();
  }
  const Permissions after = failure ? before : image.node().read_only() ? reading : writing;
  co_await image.set_permissions(after);
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

Task<void> run_reopen(Call& call) {
  Reopening change = reopening(call);
  IoState& state = call.state;
  const NodeOptions& now = state.image_node().options();
  const bool other_file = change.direct.value_or(now.cache_direct) != now.cache_direct;
  if (other_file && state.image_arguments().temporary_overlay) {
    throw Error(ENOTSUP,
                "cache.direct cannot change while a temporary overlay (-s) holds the writes");
  }
  const std::optional<CacheMode> cache = change.cache;
  std::vector<NodeChange> changes = changes_of(state, std::move(change));
  co_await state.outstanding().join();
  co_await reopen_image(state, std::move(changes));
  if (cache) state.image_arguments().cache = *cache;
}

}  // namespace vise::tools
