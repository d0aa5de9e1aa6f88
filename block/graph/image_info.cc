#include "graph/image_info.h"

#include <sys/stat.h>

#include <optional>
#include <utility>

#include "graph/file_names.h"
#include "qapi/qapi-types.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise {

std::optional<std::uint64_t> allocated_bytes(const Node& node) {
  if (node.type().kind == DriverKind::protocol) {
    struct stat status = {};
    const Value* path = node.full_options().find("filename");
    if (path == nullptr || !path->is_string() || stat(path->as_string().c_str(), &status) != 0) {
      return std::nullopt;
    }
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  std::uint64_t sum = 0;
  for (const Child* child : node.children()) {
    if (child->role() == EdgeRole::backing) continue;
    const std::optional<std::uint64_t> bytes = allocated_bytes(child->node());
    if (!bytes) return std::nullopt;
    sum += *bytes;
  }
  return sum;
}

namespace {

bool is_remote_or_json(const std::string& name) {
  return name.starts_with(json_prefix) || !protocol_prefix(name).empty();
}

void set_backing(Value::Dict& result, const Node& node, const DriverInfo& info) {
  if (!info.backing_filename || info.backing_filename->empty()) return;
  result.set("backing-filename", *info.backing_filename);
  result.set("full-backing-filename", full_backing_name(node, *info.backing_filename));
  if (info.backing_format && !info.backing_format->empty()) {
    result.set("backing-filename-format", *info.backing_format);
  }
}

// A file always says what it is, even where it has nothing specific to tell.
Value specific_of(const Node& node, DriverInfo& info) {
  if (!info.format_specific.is_null()) return std::move(info.format_specific);
  if (node.type().name != "file") return {};
  qapi::ImageInfoSpecific specific;
  specific.type = qapi::ImageInfoSpecificKind::file;
  specific.branch = qapi::ImageInfoSpecificFileWrapper();
  return to_value(specific);
}

}  // namespace

std::string full_backing_name(const Node& node, const std::string& name) {
  return is_remote_or_json(name) ? name : resolve_relative(node.protocol_filename(), name);
}

Task<Value> node_image_info(Node& node) {
  DriverInfo info = co_await node.driver().info();
  Value::Dict result;
  result.set("virtual-size", align_up(node.size(), 512));
  result.set("filename", node.filename());
  result.set("format", node.type().name);
  std::optional<std::uint64_t> disk = allocated_bytes(node);
  if (!disk) disk = info.allocated_size;
  if (disk) result.set("actual-size", *disk);
  if (info.encrypted) result.set("encrypted", true);
  if (info.cluster_size > 0) result.set("cluster-size", info.cluster_size);
  if (info.dirty) result.set("dirty-flag", *info.dirty);
  set_backing(result, node, info);
  const bool has_snapshots = info.snapshots.is_list() && !info.snapshots.as_list().empty();
  if (has_snapshots) result.set("snapshots", std::move(info.snapshots));
  Value specific = specific_of(node, info);
  if (!specific.is_null()) result.set("format-specific", std::move(specific));
  co_return result;
}

}  // namespace vise
