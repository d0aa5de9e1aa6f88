// What the readers and writers generated from qapi/ are made of. Included by generated sources
// only; what drivers use is util/driver_options.h.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "util/value_reader.h"
#include "vise/value.h"

namespace vise::qapi {

// Reading. These stand before the templates, as argument-dependent look-up finds only the
// generated types.

inline void read(const ValueReader& from, std::string& to) { to = from.string(); }
inline void read(const ValueReader& from, bool& to) { to = from.boolean(); }
inline void read(const ValueReader& from, double& to) { to = from.number(); }
inline void read(const ValueReader& from, Value& to) { to = from.value(); }
inline void read(const ValueReader& from, std::monostate&) { from.null(); }

template <class T>
  requires std::is_integral_v<T>
void read(const ValueReader& from, T& to) {
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_signed_v<T>) {
    to = static_cast<T>(from.integer(Limits::min(), Limits::max()));
  } else {
    to = static_cast<T>(from.unsigned_integer(Limits::max()));
  }
}

template <class T>
void read(const ValueReader& from, std::vector<T>& to) {
  std::size_t index = 0;
  for (const Value& value : from.list()) {
    T element{};
    read(from.element(index++, value), element);
    to.push_back(std::move(element));
  }
}

template <class T>
void read_dict(const ValueReader& from, T& to) {
  DictReader members(from);
  read_members(members, to);
  members.finish();
}

template <class T>
void get(DictReader& from, std::string_view name, T& to) {
  const Value* value = from.require(name);
  if (value != nullptr) read(from.where().member(name, *value), to);
}

template <class T>
void get(DictReader& from, std::string_view name, std::optional<T>& to) {
  const Value* value = from.find(name);
  if (value != nullptr) read(from.where().member(name, *value), to.emplace());
}

template <class T>
void get(DictReader& from, std::string_view name, std::unique_ptr<T>& to) {
  const Value* value = from.find(name);
  if (value == nullptr) return;
  to = std::make_unique<T>();
  read(from.where().member(name, *value), *to);
}

/// The member that selects a union's branch.
template <class T>
void get_tag(DictReader& from, std::string_view name, T& to) {
  const Value& value = from.demand(name);
  read(from.where().member(name, value), to);
}

inline void get_size(DictReader& from, std::string_view name, std::uint64_t& to) {
  const Value* value = from.require(name);
  if (value != nullptr) to = from.where().member(name, *value).size();
}
inline void get_size(DictReader& from, std::string_view name, std::optional<std::uint64_t>& to) {
  const Value* value = from.find(name);
  if (value != nullptr) to = from.where().member(name, *value).size();
}

/// A reference to another node: its name, its options, or (where `null` says so) null.
enum class NullChild { refused, allowed };
void get_child(DictReader& from, std::string_view name, NullChild null, Value& to);
void get_child(DictReader& from, std::string_view name, NullChild null, std::optional<Value>& to);

// Writing.

inline Value to_value(const std::string& from) { return from; }
inline Value to_value(bool from) { return from; }
inline Value to_value(double from) { return from; }
inline Value to_value(const Value& from) { return from; }
inline Value to_value(std::monostate) { return {}; }

template <class T>
  requires std::is_integral_v<T>
Value to_value(T from) {
  if constexpr (std::is_signed_v<T>) {
    return static_cast<long long>(from);
  } else {
    return static_cast<unsigned long long>(from);
  }
}

template <class T>
Value to_value(const std::vector<T>& from) {
  Value::List list;
  list.reserve(from.size());
  for (const T& element : from) list.push_back(to_value(element));
  return list;
}

template <class T>
Value dict_of(const T& from) {
  Value::Dict dict;
  write_members(from, dict);
  return dict;
}

template <class T>
void put(Value::Dict& to, std::string_view name, const T& from) {
  to.append(std::string(name), to_value(from));
}
template <class T>
void put(Value::Dict& to, std::string_view name, const std::optional<T>& from) {
  if (from) to.append(std::string(name), to_value(*from));
}
template <class T>
void put(Value::Dict& to, std::string_view name, const std::unique_ptr<T>& from) {
  if (from) to.append(std::string(name), to_value(*from));
}

template <class Branch>
void put_branch(Value::Dict& to, const Branch& branch) {
  std::visit(
      [&](const auto& members) {
        using Members = std::remove_cvref_t<decltype(members)>;
        if constexpr (!std::is_same_v<Members, std::monostate>) write_members(members, to);
      },
      branch);
}

}  // namespace vise::qapi
