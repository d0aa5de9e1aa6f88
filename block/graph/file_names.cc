// File names to option trees, and a node's name from its options.
#include "graph/file_names.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <span>
#include <system_error>

#include "graph/internals.h"
#include "graph/nbd_names.h"
#include "util/json.h"
#include "util/keyval.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

// Options that say how an image is used, not which image it is: they do not show in its name.
struct RuntimeOptions {
  std::string_view driver;
  std::span<const std::string_view> names;
};
constexpr std::string_view file_runtime[] = {"aio", "locking"};
constexpr std::string_view null_runtime[] = {"latency-ns"};
constexpr std::string_view nbd_runtime[] = {"reconnect-delay", "open-timeout"};
constexpr std::string_view blkdebug_prefix = "blkdebug";
constexpr std::string_view qcow2_runtime[] = {
    "lazy-refcounts",      "overlap-check",        "l2-cache-size",
    "refcount-cache-size", "cache-size",           "cache-clean-interval",
    "l2-cache-entry-size", "pass-discard-request", "pass-discard-snapshot",
    "pass-discard-other",  "discard-no-unref"};
constexpr std::array runtime_options = {
    RuntimeOptions{"file", file_runtime},     RuntimeOptions{"host_device", file_runtime},
    RuntimeOptions{"nbd", nbd_runtime},       RuntimeOptions{"null-co", null_runtime},
    RuntimeOptions{"null-aio", null_runtime}, RuntimeOptions{"qcow2", qcow2_runtime}};
constexpr std::string_view generic_options[] = {"node-name",   "read-only", "auto-read-only",
                                                "force-share", "discard",   "detect-zeroes",
                                                "cache",       "active"};

// The order in which the field's tools print these keys (cli reference, 1.5).
struct KeyRank {
  std::string_view key;
  int rank;
};
constexpr std::array key_ranks = {
    KeyRank{"offset", 180},   KeyRank{"image", 181},  KeyRank{"data-file", 182},
    KeyRank{"host", 229},     KeyRank{"driver", 239}, KeyRank{"path", 253},
    KeyRank{"filename", 313}, KeyRank{"size", 318},   KeyRank{"export", 326},
    KeyRank{"encrypt", 339},  KeyRank{"server", 340}, KeyRank{"file", 463}};

int rank_of(std::string_view key) {
  for (const auto& known : key_ranks) {
    if (known.key == key) return known.rank;
  }
  return 400;
}

bool is_one_of(std::string_view name, std::span<const std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_runtime_option(const Node& node, std::string_view name) {
  if (is_one_of(name, generic_options)) return true;
  for (const auto& entry : runtime_options) {
    if (entry.driver == node.type().name && is_one_of(name, entry.names)) return true;
  }
  return false;
}

// What besides driver and children says which image this is.
Value::Dict significant_options(const Node& node) {
  Value::Dict result;
  for (const auto& [key, value] : node.full_options()) {
    if (key == "driver" || is_runtime_option(node, key) || node.child(key) != nullptr) continue;
    if (key == "backing" && node.backing_child() == nullptr && !value.is_null()) continue;
    result.set(key, value);
  }
  return result;
}

// Whether a backing image that the options name has to be part of a name.
enum class OwnBacking { matters, ignored };

std::string plain_name(const Node& node, OwnBacking own_backing = OwnBacking::matters);

// "blkdebug:CONFIG:IMAGE", which has room for nothing else.
std::string blkdebug_name(const Node& node) {
  Value::Dict options = significant_options(node);
  const std::optional<Value> config = options.take("config");
  if (!options.empty() || (config && !config->is_string())) return {};
  const std::string image = plain_name(node.filtered_child()->node());
  if (image.empty()) return {};
  const std::string file = config ? config->as_string() : std::string();
  // The first colon ends the name of the file.
  if (file.find(':') != std::string::npos) return {};
  return fmt::format("{}:{}:{}", blkdebug_prefix, file, image);
}

// May a node of this type stand where plain_name() expects the file of a format?
bool has_name_form(const DriverType& type) {
  return type.kind == DriverKind::protocol || type.name == blkdebug_prefix;
}

// The file name alone, or empty where it does not say it all.
std::string plain_name(const Node& node, OwnBacking own_backing) {
  if (node.type().name == blkdebug_prefix) return blkdebug_name(node);
  Value::Dict options = significant_options(node);
  if (node.type().kind == DriverKind::filter) return {};
  if (node.type().kind == DriverKind::format) {
    const Child* file = node.child("file");
    if (own_backing == OwnBacking::ignored) options.take("backing");
    const bool overridden =
        own_backing == OwnBacking::matters && node.full_options().contains("backing");
    if (!options.empty() || overridden || file == nullptr) return {};
    if (!has_name_form(file->node().type())) return {};
    return plain_name(file->node());
  }
  if (node.type().name == "nbd") return nbd_name_of_options(std::move(options));
  const auto filename = options.take("filename");
  if (!options.empty()) return {};
  if (!filename) return fmt::format("{}://", node.type().name);
  if (!filename->is_string()) return {};
  const std::string& name = filename->as_string();
  const bool is_file = node.type().name == "file" || node.type().name == "host_device";
  return is_file && !protocol_prefix(name).empty() ? "file:" + name : name;
}

Value::Dict described(const Node& node) {
  Value::Dict all = significant_options(node);
  all.set("driver", std::string(node.type().name));
  for (const Child* edge : node.children()) {
    // A backing image that the overlay itself names goes without saying.
    if (edge->role() == EdgeRole::backing && !node.full_options().contains("backing")) continue;
    all.set(edge->name(), described(edge->node()));
  }
  std::vector<Value::Member> members(all.begin(), all.end());
  std::stable_sort(members.begin(), members.end(), [](const auto& a, const auto& b) {
    return rank_of(a.first) < rank_of(b.first);
  });
  Value::Dict sorted;
  for (auto& [key, value] : members) sorted.set(key, std::move(value));
  return sorted;
}

}  // namespace

std::string_view protocol_prefix(std::string_view name) {
  const auto colon = name.find(':');
  if (colon == std::string_view::npos || name.find('/') < colon) return {};
  return name.substr(0, colon);
}

Value::Dict plain_file_options(std::string_view name) {
  if (name.empty()) throw Error(EINVAL, "The file name is empty");
  const std::string path(name);
  struct stat status;
  const bool device =
      stat(path.c_str(), &status) == 0 && (S_ISBLK(status.st_mode) || S_ISCHR(status.st_mode));
  Value::Dict options;
  options.set("driver", device ? "host_device" : "file");
  options.set("filename", path);
  return options;
}

namespace {

Value::Dict blkdebug_options(std::string_view name, DriverTable& drivers) {
  const std::string_view rest = name.substr(blkdebug_prefix.size() + 1);
  const auto colon = rest.find(':');
  if (colon == std::string_view::npos) {
    throw Error(EINVAL, fmt::format("'{}' must have the form blkdebug:CONFIG:IMAGE, where CONFIG "
                                    "may be empty",
                                    name));
  }
  Value::Dict options;
  options.set("driver", blkdebug_prefix);
  if (colon > 0) options.set("config", rest.substr(0, colon));
  options.set("image", protocol_options(rest.substr(colon + 1), drivers));
  return options;
}

}  // namespace

Value::Dict protocol_options(std::string_view name, DriverTable& drivers) {
  const std::string_view prefix = protocol_prefix(name);
  if (prefix.empty()) return plain_file_options(name);
  if (prefix == blkdebug_prefix) return blkdebug_options(name, drivers);
  if (prefix == "file") return plain_file_options(name.substr(prefix.size() + 1));
  const std::string_view protocol = prefix.substr(0, prefix.find('+'));
  if (protocol == "nbd") return nbd_options_of_name(name);
  const DriverType* type = drivers.find(protocol);
  if (type == nullptr || type->kind != DriverKind::protocol) {
    throw Error(EINVAL, fmt::format("Unknown protocol '{}'", prefix));
  }
  Value::Dict options;
  options.set("driver", std::string(type->name));
  const std::string_view rest = name.substr(prefix.size() + 1);
  if (!rest.empty() && rest != "//") options.set("filename", std::string(name));
  return options;
}

Value::Dict json_options(std::string_view name) {
  Value value = json::parse(name.substr(json_prefix.size()));
  if (!value.is_dict()) throw Error(EINVAL, "A json: file name must hold an object");
  return nest_dotted_keys(std::move(value.as_dict()));
}

std::string resolve_relative(std::string_view image, std::string_view name) {
  if (name.starts_with('/')) return std::string(name);
  const auto prefix = protocol_prefix(image);
  if (prefix == "file") image.remove_prefix(prefix.size() + 1);
  const auto slash = image.rfind('/');
  if (slash == std::string_view::npos) return std::string(name);
  return fmt::format("{}/{}", image.substr(0, slash), name);
}

std::string Node::filename() const {
  std::string name = plain_name(*this);
  if (!name.empty()) return name;
  return std::string(json_prefix) + json::print_line(Value(described(*this)));
}

std::string name_to_store(const Node& image, const Node& overlay) {
  std::string name = plain_name(image, OwnBacking::ignored);
  if (name.empty()) {
    throw Error(EINVAL, fmt::format("Node '{}' has no plain file name that an image above it could "
                                    "store: 'backing-file' must be given",
                                    image.name()));
  }
  const std::string above = overlay.protocol_filename();
  const bool is_relative = !name.starts_with('/') && protocol_prefix(name).empty();
  if (!is_relative || !protocol_prefix(above).empty()) return name;
  // From the working directory to that of the overlay.
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(above).parent_path();
  std::error_code unknown;
  if (folder.empty() || fs::equivalent(folder, fs::current_path(), unknown)) return name;
  return fs::proximate(fs::absolute(name), fs::absolute(folder)).string();
}

std::string format_to_store(const Node& image, StoredFormat how) {
  const bool as_raw =
      how == StoredFormat::protocol_as_raw && image.type().kind == DriverKind::protocol;
  return as_raw ? "raw" : std::string(image.type().name);
}

std::string Node::protocol_filename() const {
  const Node* node = this;
  while (node->type().kind != DriverKind::protocol) {
    const Child* below = node->child("file");
    if (below == nullptr) below = node->filtered_child();
    if (below == nullptr) return {};
    node = &below->node();
  }
  const Value* name = node->full_options().find("filename");
  return name != nullptr && name->is_string() ? name->as_string() : node->filename();
}

}  // namespace vise
