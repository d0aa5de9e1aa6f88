// A JSON-like value: what options, QMP arguments and image information are passed around as.
// (The JSON library itself stays out of our headers; block/util/json.h converts to and from text.)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace vise {

/// null, boolean, integer (signed or unsigned 64 bits), number, string, list or dictionary.
/// Dictionaries keep their order of insertion.
class Value {
 public:
  using List = std::vector<Value>;
  using Member = std::pair<std::string, Value>;
  enum class Type { null, boolean, integer, uinteger, number, string, list, dict };

  /// A dictionary: few members, so a vector in order of insertion; keys are unique.
  class Dict {
   public:
    Value* find(std::string_view key);
    const Value* find(std::string_view key) const;
    bool contains(std::string_view key) const { return find(key) != nullptr; }
    /// Replaces the value of an existing key in place, else appends.
    Value& set(std::string_view key, Value value);
    /// Appends without a search: the caller knows that there is no such key.
    void append(std::string key, Value value);
    /// The value of `key`, inserted as null if missing.
    Value& operator[](std::string_view key);
    /// Removes and returns, or nothing if there is no such key.
    std::optional<Value> take(std::string_view key);
    bool erase(std::string_view key) { return take(key).has_value(); }
    bool empty() const { return members_.empty(); }
    std::size_t size() const { return members_.size(); }
    auto begin() { return members_.begin(); }
    auto end() { return members_.end(); }
    auto begin() const { return members_.begin(); }
    auto end() const { return members_.end(); }
    bool operator==(const Dict& other) const;

   private:
    std::vector<Member> members_;
  };

  Value() = default;
  Value(bool v) : data_(v) {}                               // NOLINT: literals convert
  Value(int v) : data_(std::int64_t{v}) {}                  // NOLINT
  Value(unsigned v) : data_(std::int64_t{v}) {}             // NOLINT
  Value(long v) : data_(std::int64_t{v}) {}                 // NOLINT
  Value(long long v) : data_(std::int64_t{v}) {}            // NOLINT
  Value(unsigned long v) : data_(from_unsigned(v)) {}       // NOLINT
  Value(unsigned long long v) : data_(from_unsigned(v)) {}  // NOLINT
  Value(double v) : data_(v) {}                             // NOLINT
  Value(const char* v) : data_(std::string(v)) {}           // NOLINT
  Value(std::string_view v) : data_(std::string(v)) {}      // NOLINT
  Value(std::string v) : data_(std::move(v)) {}             // NOLINT
  Value(List v) : data_(std::move(v)) {}                    // NOLINT
  Value(Dict v) : data_(std::move(v)) {}                    // NOLINT

  Type type() const { return static_cast<Type>(data_.index()); }
  bool is_null() const { return type() == Type::null; }
  bool is_bool() const { return type() == Type::boolean; }
  /// Any integer, signed or unsigned. Those up to 2^63 - 1 are always stored as `integer`.
  bool is_integer() const { return type() == Type::integer || type() == Type::uinteger; }
  bool is_string() const { return type() == Type::string; }
  bool is_list() const { return type() == Type::list; }
  bool is_dict() const { return type() == Type::dict; }

  /// The accessors assert the type; test it first on values from outside.
  bool as_bool() const { return std::get<bool>(data_); }
  std::int64_t as_int() const { return std::get<std::int64_t>(data_); }
  /// A non-negative integer of either kind.
  std::uint64_t as_uint() const;
  double as_double() const;
  const std::string& as_string() const { return std::get<std::string>(data_); }
  const List& as_list() const { return std::get<List>(data_); }
  List& as_list() { return std::get<List>(data_); }
  const Dict& as_dict() const { return std::get<Dict>(data_); }
  Dict& as_dict() { return std::get<Dict>(data_); }

  bool operator==(const Value& other) const = default;

 private:
  using Data = std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string,
                            List, Dict>;
  static Data from_unsigned(std::uint64_t v) {
    if (v <= INT64_MAX) return static_cast<std::int64_t>(v);
    return v;
  }
  Data data_;
};

}  // namespace vise
