#include "tools/img/image_info.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

#include "graph/image_info.h"
#include "tools/common/sizes.h"
#include "tools/common/snapshot_list.h"
#include "tools/common/specific.h"
#include "vise/child.h"

namespace vise::tools {

namespace {

Task<Value::List> children_info(Node& node) {
  Value::List result;
  // The one attached last comes first.
  for (auto child = node.children().rbegin(); child != node.children().rend(); ++child) {
    if ((*child)->role() == EdgeRole::backing) continue;
    Value::Dict entry;
    entry.set("name", (*child)->name());
    Value info = co_await image_info((*child)->node());
    entry.set("info", std::move(info));
    result.push_back(std::move(entry));
  }
  co_return result;
}

const Value* member(const Value& dict, std::string_view key) { return dict.as_dict().find(key); }

std::string size_with_bytes(std::uint64_t bytes) {
  return fmt::format("{} ({} bytes)", image_size_text(bytes), bytes);
}

std::string backing_text(const Value& info, const std::string& pad) {
  const Value* stored = member(info, "backing-filename");
  if (stored == nullptr) return {};
  std::string text = fmt::format("{}backing file: {}", pad, stored->as_string());
  const Value* full = member(info, "full-backing-filename");
  if (full != nullptr && full->as_string() != stored->as_string()) {
    text += fmt::format(" (actual path: {})", full->as_string());
  }
  text += "\n";
  if (const Value* format = member(info, "backing-filename-format")) {
    text += fmt::format("{}backing file format: {}\n", pad, format->as_string());
  }
  return text;
}

std::string disk_size_text(const Value& info) {
  const Value* size = member(info, "actual-size");
  return size != nullptr ? image_size_text(size->as_uint()) : "unavailable";
}

// A child without children of its own, and that is no image.
std::string leaf_text(const Value& info, const std::string& pad) {
  std::string text = fmt::format("{}filename: {}\n", pad, member(info, "filename")->as_string());
  text += fmt::format("{}protocol type: {}\n", pad, member(info, "format")->as_string());
  text += fmt::format("{}file length: {}\n", pad,
                      size_with_bytes(member(info, "virtual-size")->as_uint()));
  return text + fmt::format("{}disk size: {}\n", pad, disk_size_text(info));
}

std::string head_text(const Value& info, const std::string& pad) {
  std::string text = fmt::format("{}image: {}\n", pad, member(info, "filename")->as_string());
  const auto line = [&](std::string_view label, std::string_view value) {
    fmt::format_to(std::back_inserter(text), "{}{}: {}\n", pad, label, value);
  };
  line("file format", member(info, "format")->as_string());
  line("virtual size", size_with_bytes(member(info, "virtual-size")->as_uint()));
  line("disk size", disk_size_text(info));
  const Value* encrypted = member(info, "encrypted");
  if (encrypted != nullptr && encrypted->as_bool()) line("encrypted", "yes");
  if (const Value* size = member(info, "cluster-size")) {
    line("cluster_size", fmt::format("{}", size->as_uint()));
  }
  const Value* dirty = member(info, "dirty-flag");
  if (dirty != nullptr && dirty->as_bool()) line("cleanly shut down", "no");
  return text;
}

}  // namespace

Task<Value> image_info(Node& node) {
  Value::Dict result;
  Value::List children = co_await children_info(node);
  result.set("children", std::move(children));
  const Value own = co_await node_image_info(node);
  for (const auto& [name, value] : own.as_dict()) result.set(name, value);
  co_return result;
}

std::string image_info_text(const Value& info, unsigned indent, const std::string& path) {
  const std::string pad(indent, ' ');
  std::string text = head_text(info, pad) + backing_text(info, pad);
  if (const Value* snapshots = member(info, "snapshots")) {
    text += snapshot_list_text(snapshots->as_list(), indent);
  }
  if (const Value* specific = member(info, "format-specific")) {
    text += format_specific_text(*specific, indent);
  }
  for (const Value& child : member(info, "children")->as_list()) {
    const std::string child_path = path + "/" + member(child, "name")->as_string();
    const Value& child_info = *member(child, "info");
    text += fmt::format("{}Child node '{}':\n", pad, child_path);
    if (member(child_info, "children")->as_list().empty()) {
      text += leaf_text(child_info, pad + "    ");
    } else {
      text += image_info_text(child_info, indent + 4, child_path);
    }
  }
  return text;
}

}  // namespace vise::tools
