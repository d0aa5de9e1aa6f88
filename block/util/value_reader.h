// Turns a Value from outside into C++ types, with errors that name the option by its whole path.
// The readers generated from qapi/ stand on this.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vise/value.h"

namespace vise {

/// How literally types are taken.
enum class ValueInput {
  options,  // option strings and json: names: "4k" is a size, "on" a boolean, "7" an integer
  json      // QMP: JSON types only
};

/// A value and where it stands. All borrowed: value, names and parent outlive the reader.
/// Every getter throws Error(EINVAL) that names the path and what is allowed there.
class ValueReader {
 public:
  /// The root of a tree. `prefix` is put in front of the names of its members ("file." or empty).
  ValueReader(const Value& value, ValueInput input, std::string_view prefix = {})
      : value_(value), prefix_(prefix), input_(input) {}
  /// One option of a driver, as ValueInput::options.
  ValueReader(const Value& value, std::string_view prefix, std::string_view name)
      : value_(value), prefix_(prefix), name_(name), input_(ValueInput::options) {}

  ValueReader member(std::string_view name, const Value& value) const;
  ValueReader element(std::size_t index, const Value& value) const;

  const Value& value() const { return value_; }
  ValueInput input() const { return input_; }
  /// "file.filename", "children.0" (JSON: "children[0]"); empty for a root without prefix.
  std::string path() const;

  /// Never holds a NUL byte.
  std::string string() const;
  bool boolean() const;
  std::int64_t integer(std::int64_t minimum = INT64_MIN, std::int64_t maximum = INT64_MAX) const;
  std::uint64_t unsigned_integer(std::uint64_t maximum = UINT64_MAX) const;
  /// Bytes, at most INT64_MAX.
  std::uint64_t size() const;
  double number() const;
  /// The index in `names`.
  std::size_t choice(std::span<const std::string_view> names) const;
  const Value::Dict& dict() const;
  const Value::List& list() const;
  void null() const;

  /// "Invalid parameter type for 'PATH', expected: WHAT".
  [[noreturn]] void fail_type(std::string_view expected) const;
  /// "Parameter 'PATH' REASON".
  [[noreturn]] void fail(std::string_view reason) const;
  [[noreturn]] void fail_range(std::uint64_t minimum, std::uint64_t maximum) const;

 private:
  const Value& value_;
  const ValueReader* parent_ = nullptr;
  std::string_view prefix_;
  std::string_view name_;
  std::optional<std::size_t> index_;
  ValueInput input_;
};

/// "Parameter 'PREFIX+NAME' is unexpected", followed by the nearest of `known` and `also_known`, or
/// by all of `known`.
[[noreturn]] void fail_unexpected(std::string_view prefix, std::string_view name,
                                  const std::vector<std::string>& known,
                                  const std::vector<std::string>& also_known = {});

/// The members of one dictionary, asked for one by one.
class DictReader {
 public:
  /// May references to other nodes be missing? (A plain file name may stand in for them.)
  enum class MissingChildren { refused, allowed };

  /// Throws if the value is no dictionary.
  explicit DictReader(const ValueReader& where,
                      MissingChildren missing_children = MissingChildren::refused)
      : where_(where), dict_(where.dict()), missing_children_(missing_children) {}

  /// The member, or nothing. It counts as known from then on.
  const Value* find(std::string_view name);
  /// The same for one that must be there; finish() reports it if it is not.
  const Value* require(std::string_view name);
  /// At once: for the member that says which others are allowed.
  const Value& demand(std::string_view name);

  /// A required reference to another node.
  const Value* require_child(std::string_view name);
  const Value* find_child(std::string_view name);

  const ValueReader& where() const { return where_; }
  /// All that was asked for, except references to other nodes.
  std::vector<std::string> names_without_children() const;

  /// Names that others have taken out already, for suggestions.
  void suggest(std::vector<std::string> names) { also_known_ = std::move(names); }

  /// Throws for members nobody asked for, then for required ones that are missing.
  void finish();

 private:
  void fail_unknown() const;
  const ValueReader& where_;
  const Value::Dict& dict_;
  MissingChildren missing_children_;
  std::vector<std::string> known_;
  std::vector<std::string> also_known_;
  std::vector<std::string> children_;
  std::optional<std::string> missing_;
};

}  // namespace vise
