// reopen: changes how the image is opened. Some options change while it stays open; for the others
// it is closed and opened again, as it was if that fails.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

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

// Options of a driver's own that can be others once the image is opened again.
bool can_change(const DriverType& type, std::string_view option) {
  struct Changeable {
    std::string_view driver, option;
  };
  static constexpr auto table = std::to_array<Changeable>({{"qcow2", "lazy-refcounts"},
                                                           {"qcow2", "overlap-check"},
                                                           {"qcow2", "l2-cache-size"},
                                                           {"qcow2", "l2-cache-entry-size"},
                                                           {"qcow2", "refcount-cache-size"},
                                                           {"qcow2", "cache-size"},
                                                           {"qcow2", "cache-clean-interval"},
                                                           {"qcow2", "pass-discard-request"},
                                                           {"qcow2", "pass-discard-snapshot"},
                                                           {"qcow2", "pass-discard-other"},
                                                           {"qcow2", "discard-no-unref"},
                                                           {"raw", "offset"},
                                                           {"raw", "size"},
                                                           {"compress", "mode"},
                                                           {"compress", "level"},
                                                           {"compress", "write-buffer-size"},
                                                           {"throttle", "throttle-group"}});
  return std::ranges::any_of(table, [&](const Changeable& entry) {
    return entry.driver == type.name && entry.option == option;
  });
}

Task<void> switch_image(IoState& state, bool read_only) {
  Child& image = *state.image();
  co_await state.outstanding().join();
  if (read_only == image.node().read_only()) co_return;
  Permissions wanted = image.permissions();
  wanted.uses = PermissionSet(Permission::consistent_read);
  if (read_only) co_await image.set_permissions(wanted);
  co_await state.session().graph().reopen(image.node(), read_only);
  wanted.uses |= PermissionSet(Permission::write) | Permission::resize;
  if (!read_only) co_await image.set_permissions(wanted);
}

}  // namespace

Task<void> run_reopen(Call& call) {
  Reopening change = reopening(call);
  IoState& state = call.state;
  Node& node = state.image_node();
  ImageArguments next = state.image_arguments();
  Value::Dict in_place;
  bool needs_new_node =
      change.direct.value_or(node.options().cache_direct) != node.options().cache_direct;
  for (const auto& [name, value] : change.options) {
    const bool new_node = can_change(node.type(), name);
    needs_new_node = needs_new_node || new_node;
    if (!new_node) in_place.set(name, value);
    if (new_node || name == "discard" || name == "detect-zeroes") next.options.set(name, value);
  }
  Value::Dict cache;
  cache.set("direct", change.direct.value_or(node.options().cache_direct));
  cache.set("no-flush", change.no_flush.value_or(node.options().cache_no_flush));
  if (change.direct || change.no_flush) next.options.set("cache", std::move(cache));
  if (change.no_flush) in_place.set("cache.no-flush", *change.no_flush);
  if (change.cache) next.cache = *change.cache;
  if (change.read_only) next.read_only = *change.read_only;
  if (needs_new_node) state.check_replaceable();
  state.session().graph().change_options(node, std::move(in_place));
  if (needs_new_node) {
    co_await state.replace_image(std::move(next));
    co_return;
  }
  if (change.read_only) co_await switch_image(state, *change.read_only);
  state.image_arguments() = std::move(next);
}

}  // namespace vise::tools
