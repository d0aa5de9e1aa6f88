#include "tools/common/specific.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

#include "tools/common/key_order.h"

namespace vise::tools {

namespace {

bool is_composite(const Value& value) { return value.is_dict() || value.is_list(); }

std::string scalar_text(const Value& value) {
  switch (value.type()) {
    case Value::Type::boolean:
      return value.as_bool() ? "true" : "false";
    case Value::Type::integer:
      return fmt::format("{}", value.as_int());
    case Value::Type::uinteger:
      return fmt::format("{}", value.as_uint());
    case Value::Type::number:
      return fmt::format("{}", value.as_double());
    case Value::Type::string:
      return value.as_string();
    default:
      return "<null>";
  }
}

void append_members(std::string& text, const Value& value, unsigned indent);

void append_member(std::string& text, const std::string& label, const Value& value,
                   unsigned indent) {
  text += std::string(indent, ' ') + label + ":";
  if (is_composite(value)) {
    text += "\n";
    append_members(text, value, indent + 4);
  } else {
    text += fmt::format(" {}\n", scalar_text(value));
  }
}

void append_members(std::string& text, const Value& value, unsigned indent) {
  if (value.is_list()) {
    std::size_t i = 0;
    for (const Value& element : value.as_list()) {
      append_member(text, fmt::format("[{}]", i++), element, indent);
    }
    return;
  }
  for (const auto& [key, member] : value.as_dict()) {
    std::string label = key;
    std::replace(label.begin(), label.end(), '-', ' ');
    append_member(text, label, member, indent);
  }
}

}  // namespace

std::string format_specific_text(const Value& specific, unsigned indent) {
  if (!specific.is_dict()) return {};
  const Value* data = specific.as_dict().find("data");
  if (data == nullptr || !data->is_dict() || data->as_dict().empty()) return {};
  std::string text = std::string(indent, ' ') + "Format specific information:\n";
  append_members(text, in_printing_order(*data), indent + 4);
  return text;
}

}  // namespace vise::tools
