// Names every type of object, as driver_table.cc does with drivers.
#include "vise/objects.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "filter/throttle_group.h"
#include "util/driver_options.h"
#include "util/keyval.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise {

namespace {

struct ObjectType {
  std::string_view name;
  std::shared_ptr<Object> (*make)(const Value::Dict& options);
};

constexpr std::array object_types = {ObjectType{"throttle-group", make_throttle_group}};

std::string take_text(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) throw Error(EINVAL, fmt::format("Parameter '{}' is missing", name));
  if (!value->is_string()) {
    throw Error(EINVAL, fmt::format("Invalid parameter type for '{}', expected: string", name));
  }
  return value->as_string();
}

const ObjectType& type_of_name(const std::string& name) {
  const auto found = std::ranges::find(object_types, name, &ObjectType::name);
  if (found != object_types.end()) return *found;
  std::string message = fmt::format("Unknown object type '{}'", name);
  const auto known = ObjectTable::types();
  const std::vector<std::string> names(known.begin(), known.end());
  message += fmt::format(": must be {}", fmt::join(names, ", "));
  throw Error(EINVAL, message);
}

bool is_well_formed(std::string_view id) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && letter(id.front()) && std::ranges::all_of(id, [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

}  // namespace

void ObjectTable::create(Value::Dict options) {
  options = nest_dotted_keys(std::move(options));
  const ObjectType& type = type_of_name(take_text(options, "qom-type"));
  std::string id = take_text(options, "id");
  if (!is_well_formed(id)) {
    throw Error(EINVAL, fmt::format("'{}' is not an id: letters, digits, '-', '.' and '_', the "
                                    "first one a letter",
                                    id));
  }
  if (find(id) != nullptr) {
    throw Error(EEXIST, fmt::format("There is an object with the id '{}' already", id));
  }
  objects_.emplace_back(std::move(id), type.make(options));
}

std::shared_ptr<Object> ObjectTable::find(std::string_view id) const {
  for (const auto& [name, object] : objects_) {
    if (name == id) return object;
  }
  return nullptr;
}

std::vector<std::string_view> ObjectTable::types() {
  std::vector<std::string_view> names;
  for (const ObjectType& type : object_types) names.push_back(type.name);
  return names;
}

}  // namespace vise
