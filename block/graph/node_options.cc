// Generic node options: reading and inheriting.
#include "graph/node_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "util/value_reader.h"
#include "vise/error.h"

namespace vise {

namespace {

void take_bool(Value::Dict& options, const std::string& path, std::string_view name, bool& to) {
  if (const auto value = options.take(name)) to = ValueReader(*value, path, name).boolean();
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

void check_node_name(const std::string& name) {
  constexpr std::size_t longest = 31;
  const bool well_formed =
      !name.empty() && is_letter(name.front()) && name.size() <= longest &&
      std::all_of(name.begin(), name.end(), [](char c) {
        return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
      });
  if (!well_formed) {
    throw Error(EINVAL,
                fmt::format("'{}' is not a node name: 1 to {} letters, digits, '-', '.' and "
                            "'_', the first one a letter",
                            name, longest));
  }
}

}  // namespace

NodeOptions take_node_options(Value::Dict& options, const NodeOptions& defaults,
                              const std::string& path) {
  NodeOptions result = defaults;
  if (const auto value = options.take("node-name")) {
    result.node_name = ValueReader(*value, path, "node-name").string();
    check_node_name(result.node_name);
  }
  take_bool(options, path, "read-only", result.read_only);
  take_bool(options, path, "auto-read-only", result.auto_read_only);
  take_bool(options, path, "force-share", result.force_share);
  bool active = true;
  take_bool(options, path, "active", active);
  if (!active) {
    throw Error(ENOTSUP, fmt::format("Option '{}active' must be on: inactive nodes are not "
                                     "supported",
                                     path));
  }
  if (const auto value = options.take("discard")) {
    static constexpr std::array<std::string_view, 4> names = {"ignore", "off", "unmap", "on"};
    result.discard_unmap = ValueReader(*value, path, "discard").choice(names) >= 2;
  }
  if (const auto value = options.take("detect-zeroes")) {
    static constexpr std::array<std::string_view, 3> names = {"off", "on", "unmap"};
    constexpr std::array meanings = {DetectZeroes::off, DetectZeroes::on, DetectZeroes::unmap};
    result.detect_zeroes = meanings[ValueReader(*value, path, "detect-zeroes").choice(names)];
  }
  if (auto value = options.take("cache")) {
    const std::string cache_path = path + "cache.";
    ValueReader(*value, path, "cache").dict();
    Value::Dict& cache = value->as_dict();
    take_bool(cache, cache_path, "direct", result.cache_direct);
    take_bool(cache, cache_path, "no-flush", result.cache_no_flush);
    if (!cache.empty()) fail_unexpected(cache_path, cache.begin()->first, {"direct", "no-flush"});
  }
  if (result.force_share && !result.read_only) {
    throw Error(EINVAL,
                fmt::format("Option '{}force-share' can only be used with read-only=on", path));
  }
  if (result.detect_zeroes == DetectZeroes::unmap && !result.discard_unmap) {
    throw Error(EINVAL, fmt::format("Option '{}detect-zeroes=unmap' can only be used with "
                                    "discard=unmap",
                                    path));
  }
  return result;
}

NodeOptions inherited_options(const NodeOptions& above, EdgeRole role) {
  NodeOptions result;
  result.read_only = above.read_only || role == EdgeRole::backing;
  result.auto_read_only = above.auto_read_only && !result.read_only;
  result.force_share = above.force_share;
  result.cache_direct = above.cache_direct;
  result.cache_no_flush = above.cache_no_flush;
  // Formats and filters decide themselves what is worth discarding.
  result.discard_unmap = true;
  return result;
}

}  // namespace vise
