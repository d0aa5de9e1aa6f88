// Value: a JSON-like tree; see vise/value.h.
#include "vise/value.h"

#include <algorithm>
#include <cassert>

namespace vise {

Value* Value::Dict::find(std::string_view key) {
  for (Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const Value* Value::Dict::find(std::string_view key) const {
  for (const Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

Value& Value::Dict::set(std::string_view key, Value value) {
  Value& slot = (*this)[key];
  slot = std::move(value);
  return slot;
}

void Value::Dict::append(std::string key, Value value) {
  members_.emplace_back(std::move(key), std::move(value));
}

Value& Value::Dict::operator[](std::string_view key) {
  if (Value* found = find(key)) return *found;
  return members_.emplace_back(std::string(key), Value()).second;
}

std::optional<Value> Value::Dict::take(std::string_view key) {
  const auto found = std::find_if(members_.begin(), members_.end(),
                                  [&](const Member& member) { return member.first == key; });
  if (found == members_.end()) return std::nullopt;
  std::optional<Value> value = std::move(found->second);
  members_.erase(found);
  return value;
}

// Order carries no meaning in JSON, so it does not count here either.
bool Value::Dict::operator==(const Dict& other) const {
  if (size() != other.size()) return false;
  return std::all_of(members_.begin(), members_.end(), [&](const Member& member) {
    const Value* theirs = other.find(member.first);
    return theirs != nullptr && *theirs == member.second;
  });
}

std::uint64_t Value::as_uint() const {
  if (const auto* large = std::get_if<std::uint64_t>(&data_)) return *large;
  const std::int64_t value = as_int();
  assert(value >= 0);
  return static_cast<std::uint64_t>(value);
}

double Value::as_double() const {
  switch (type()) {
    case Type::integer:
      return static_cast<double>(std::get<std::int64_t>(data_));
    case Type::uinteger:
      return static_cast<double>(std::get<std::uint64_t>(data_));
    default:
      return std::get<double>(data_);
  }
}

}  // namespace vise
