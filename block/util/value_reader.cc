// ValueReader and DictReader: see the header.
#include "util/value_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>

#include "vise/error.h"
#include "vise/options.h"

namespace vise {
namespace {

std::string join_names(std::span<const std::string_view> names) {
  std::string joined;
  for (const std::string_view name : names) {
    if (!joined.empty()) joined += ", ";
    joined += name;
  }
  return joined;
}

struct ParsedInteger {
  bool negative = false;
  std::uint64_t magnitude = 0;
};

/// A C integer without octal: sign, decimal or 0x digits. Nothing if it is none or too large.
std::optional<ParsedInteger> parse_integer(std::string_view text) {
  ParsedInteger result;
  if (text.starts_with('-') || text.starts_with('+')) {
    result.negative = text.front() == '-';
    text.remove_prefix(1);
  }
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, result.magnitude, base);
  if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return result;
}

}  // namespace

ValueReader ValueReader::member(std::string_view name, const Value& value) const {
  ValueReader reader(value, input_);
  reader.parent_ = this;
  reader.name_ = name;
  return reader;
}

ValueReader ValueReader::element(std::size_t index, const Value& value) const {
  ValueReader reader(value, input_);
  reader.parent_ = this;
  reader.index_ = index;
  return reader;
}

std::string ValueReader::path() const {
  if (parent_ == nullptr) {
    std::string path = std::string(prefix_) + std::string(name_);
    if (path.ends_with('.')) path.pop_back();
    return path;
  }
  const std::string above = parent_->path();
  if (index_ && input_ == ValueInput::json) return fmt::format("{}[{}]", above, *index_);
  const std::string own = index_ ? std::to_string(*index_) : std::string(name_);
  return above.empty() ? own : fmt::format("{}.{}", above, own);
}

void ValueReader::fail_type(std::string_view expected) const {
  const std::string where = path();
  if (where.empty())
    throw Error(EINVAL, fmt::format("Invalid parameter type, expected: {}", expected));
  throw Error(EINVAL,
              fmt::format("Invalid parameter type for '{}', expected: {}", where, expected));
}

void ValueReader::fail(std::string_view reason) const {
  throw Error(EINVAL, fmt::format("Parameter '{}' {}", path(), reason));
}

void ValueReader::fail_range(std::uint64_t minimum, std::uint64_t maximum) const {
  fail(fmt::format("expects a value from {} to {}", minimum, maximum));
}

std::string ValueReader::string() const {
  if (!value_.is_string()) fail_type("string");
  if (value_.as_string().find('\0') != std::string::npos) fail("must not contain a NUL character");
  return value_.as_string();
}

bool ValueReader::boolean() const {
  if (value_.is_bool()) return value_.as_bool();
  if (input_ == ValueInput::json || !value_.is_string()) fail_type("boolean");
  try {
    return parse_bool(value_.as_string());
  } catch (const Error&) {
    fail(fmt::format("expects 'on' or 'off', not '{}'", value_.as_string()));
  }
}

std::int64_t ValueReader::integer(std::int64_t minimum, std::int64_t maximum) const {
  std::optional<std::int64_t> result;
  if (value_.type() == Value::Type::integer) {
    result = value_.as_int();
  } else if (value_.is_string() && input_ == ValueInput::options) {
    const auto parsed = parse_integer(value_.as_string());
    if (!parsed) fail(fmt::format("expects an integer, not '{}'", value_.as_string()));
    constexpr std::uint64_t limit = INT64_MAX;
    if (parsed->magnitude <= limit) {
      const auto magnitude = static_cast<std::int64_t>(parsed->magnitude);
      result = parsed->negative ? -magnitude : magnitude;
    } else if (parsed->negative && parsed->magnitude == limit + 1) {
      result = INT64_MIN;
    }
  } else if (!value_.is_integer()) {
    fail_type("integer");
  }
  if (!result || *result < minimum || *result > maximum) {
    fail(fmt::format("expects an integer from {} to {}", minimum, maximum));
  }
  return *result;
}

std::uint64_t ValueReader::unsigned_integer(std::uint64_t maximum) const {
  std::optional<std::uint64_t> result;
  if (value_.is_integer()) {
    const bool negative = value_.type() == Value::Type::integer && value_.as_int() < 0;
    if (!negative) result = value_.as_uint();
  } else if (value_.is_string() && input_ == ValueInput::options) {
    const auto parsed = parse_integer(value_.as_string());
    if (!parsed) fail(fmt::format("expects an integer, not '{}'", value_.as_string()));
    if (!parsed->negative || parsed->magnitude == 0) result = parsed->magnitude;
  } else {
    fail_type("integer");
  }
  if (!result || *result > maximum) fail(fmt::format("expects an integer from 0 to {}", maximum));
  return *result;
}

std::uint64_t ValueReader::size() const {
  if (value_.is_string() && input_ == ValueInput::options) {
    try {
      return parse_size(value_.as_string());
    } catch (const Error& error) {
      throw Error(error.code(), fmt::format("Parameter '{}': {}", path(), error.what()));
    }
  }
  if (!value_.is_integer()) fail_type("integer");
  return unsigned_integer(INT64_MAX);
}

double ValueReader::number() const {
  if (value_.is_integer() || value_.type() == Value::Type::number) return value_.as_double();
  if (!value_.is_string() || input_ == ValueInput::json) fail_type("number");
  const std::string& text = value_.as_string();
  double result = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, result);
  if (parsed.ec != std::errc() || parsed.ptr != end || !std::isfinite(result)) {
    fail(fmt::format("expects a number, not '{}'", text));
  }
  return result;
}

std::size_t ValueReader::choice(std::span<const std::string_view> names) const {
  if (!value_.is_string()) fail_type(fmt::format("string (one of {})", join_names(names)));
  const std::string& text = value_.as_string();
  const auto found = std::find(names.begin(), names.end(), text);
  if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
  const auto nearest = nearest_name(text, std::vector<std::string>(names.begin(), names.end()));
  fail(fmt::format("does not accept value '{}', only {}{}", text, join_names(names),
                   nearest ? fmt::format("; did you mean '{}'?", *nearest) : ""));
}

const Value::Dict& ValueReader::dict() const {
  if (!value_.is_dict()) fail_type("object");
  return value_.as_dict();
}

const Value::List& ValueReader::list() const {
  if (!value_.is_list()) fail_type("array");
  return value_.as_list();
}

void ValueReader::null() const {
  if (!value_.is_null()) fail_type("null");
}

void fail_unexpected(std::string_view prefix, std::string_view name,
                     const std::vector<std::string>& known,
                     const std::vector<std::string>& also_known) {
  std::vector<std::string> candidates = known;
  candidates.insert(candidates.end(), also_known.begin(), also_known.end());
  std::string text = fmt::format("Parameter '{}{}' is unexpected", prefix, name);
  if (const auto nearest = nearest_name(name, candidates)) {
    text += fmt::format(": did you mean '{}{}'?", prefix, *nearest);
  } else if (!known.empty()) {
    text += fmt::format(": known here are {}",
                        join_names(std::vector<std::string_view>(known.begin(), known.end())));
  }
  throw Error(EINVAL, text);
}

const Value* DictReader::find(std::string_view name) {
  if (std::find(known_.begin(), known_.end(), name) == known_.end()) known_.emplace_back(name);
  return dict_.find(name);
}

const Value* DictReader::require(std::string_view name) {
  const Value* value = find(name);
  if (value == nullptr && !missing_) missing_ = std::string(name);
  return value;
}

const Value* DictReader::find_child(std::string_view name) {
  children_.emplace_back(name);
  return find(name);
}

const Value* DictReader::require_child(std::string_view name) {
  children_.emplace_back(name);
  return missing_children_ == MissingChildren::allowed ? find(name) : require(name);
}

std::vector<std::string> DictReader::names_without_children() const {
  std::vector<std::string> names;
  for (const std::string& name : known_) {
    if (std::find(children_.begin(), children_.end(), name) == children_.end()) {
      names.push_back(name);
    }
  }
  return names;
}

const Value& DictReader::demand(std::string_view name) {
  const Value* value = find(name);
  if (value != nullptr) return *value;
  missing_ = std::string(name);
  // A misspelt name is the likelier cause, but others cannot be judged without this one.
  for (const auto& [key, unused] : dict_) {
    const bool is_known = std::find(known_.begin(), known_.end(), key) != known_.end();
    if (!is_known && nearest_name(key, {std::string(name)})) fail_unknown();
  }
  const Value null;
  where_.member(*missing_, null).fail("is missing");
}

void DictReader::fail_unknown() const {
  for (const auto& [key, unused] : dict_) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string path = where_.path();
    fail_unexpected(path.empty() ? path : path + ".", key, known_, also_known_);
  }
}

void DictReader::finish() {
  fail_unknown();
  const Value null;
  if (missing_) where_.member(*missing_, null).fail("is missing");
}

}  // namespace vise
