// Option strings and dotted keys (reference: cli.md 2.3, 2.8).
#include "util/keyval.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

#include "vise/error.h"

namespace vise {
namespace {

constexpr std::size_t max_depth = 1024;  // as of JSON

/// Takes one value off the front of `rest`, the comma behind it included; ",," is a comma.
std::string take_value(std::string_view& rest) {
  std::string value;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    value += rest.substr(0, comma);
    if (comma == std::string_view::npos) {
      rest = {};
      break;
    }
    rest.remove_prefix(comma + 1);
    if (!rest.starts_with(',')) break;
    value += ',';
    rest.remove_prefix(1);
  }
  return value;
}

void add_bare_word(Keyval& result, std::string word, bool first, const KeyvalSyntax& syntax) {
  if (first && !syntax.implied_key.empty()) {
    result.options.set(syntax.implied_key, std::move(word));
    return;
  }
  if (syntax.bare_words == KeyvalSyntax::BareWords::refused) {
    throw Error(EINVAL, fmt::format("Expected '=' after parameter '{}'", word));
  }
  if (word.starts_with("no") && word.size() > 2) {
    result.options.set(std::string_view(word).substr(2), "off");
  } else {
    result.options.set(word, "on");
  }
  result.bare_words.push_back(std::move(word));
}

/// A list index: decimal digits without leading zeros.
std::optional<std::size_t> list_index(std::string_view key) {
  if (key.empty() || (key.size() > 1 && key.front() == '0')) return std::nullopt;
  std::size_t index = 0;
  const char* const end = key.data() + key.size();
  const auto result = std::from_chars(key.data(), end, index);
  if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return index;
}

std::string joined(std::string_view prefix, std::string_view key) {
  return prefix.empty() ? std::string(key) : fmt::format("{}.{}", prefix, key);
}

Value nest_value(Value value, const std::string& path, std::size_t depth);

/// Turns a dictionary with the keys 0 … n - 1 into a list; leaves others alone.
Value listed(Value::Dict dict, const std::string& path) {
  const auto is_index = [](const Value::Member& member) {
    return list_index(member.first).has_value();
  };
  if (dict.empty() || std::none_of(dict.begin(), dict.end(), is_index)) return dict;
  if (!std::all_of(dict.begin(), dict.end(), is_index)) {
    throw Error(EINVAL,
                fmt::format("Parameter '{}' mixes list indices with names of members", path));
  }
  Value::List list(dict.size());
  for (auto& [key, value] : dict) {
    const std::size_t index = *list_index(key);
    if (index >= list.size()) {
      const auto is_missing = [&](std::size_t i) { return !dict.contains(std::to_string(i)); };
      std::size_t missing = 0;
      while (!is_missing(missing)) ++missing;
      throw Error(EINVAL, fmt::format("Parameter '{}' is missing: list indices run from 0 without "
                                      "a gap",
                                      joined(path, std::to_string(missing))));
    }
    list[index] = std::move(value);
  }
  return list;
}

/// Sorts the members of `flat` by the first part of their keys, then each of them likewise.
Value::Dict nest_dict(Value::Dict flat, const std::string& path, std::size_t depth) {
  if (depth > max_depth) {
    throw Error(EINVAL, fmt::format("Parameters are nested deeper than {} levels", max_depth));
  }
  Value::Dict result;
  Value::Dict members;  // head → dictionary of what is below it, from dotted keys
  for (auto& [key, value] : flat) {
    const std::size_t dot = key.find('.');
    const std::string_view head = std::string_view(key).substr(0, dot);
    if (head.empty() || (dot != std::string::npos && dot + 1 == key.size())) {
      throw Error(EINVAL, fmt::format("Parameter name '{}' has an empty part", joined(path, key)));
    }
    if (dot == std::string::npos) {
      result.set(head, std::move(value));
      continue;
    }
    // The place in the result is that of the first mention.
    if (!result.contains(head)) result.set(head, Value());
    Value& below = members[head];
    if (below.is_null()) below = Value::Dict();
    const std::string_view tail = std::string_view(key).substr(dot + 1);
    below.as_dict().set(tail, std::move(value));
  }
  for (auto& [head, below] : members) {
    Value& slot = *result.find(head);
    if (slot.is_null()) {
      slot = std::move(below);
    } else if (slot.is_dict()) {
      for (auto& [key, value] : below.as_dict()) {
        if (slot.as_dict().contains(key)) {
          throw Error(EINVAL, fmt::format("Parameter '{}' is given twice",
                                          joined(joined(path, head), key)));
        }
        slot.as_dict().append(key, std::move(value));
      }
    } else {
      throw Error(EINVAL, fmt::format("Parameters '{0}' and '{0}.*' cannot be used together",
                                      joined(path, head)));
    }
  }
  for (auto& [key, value] : result) {
    value = nest_value(std::move(value), joined(path, key), depth + 1);
  }
  return result;
}

Value nest_value(Value value, const std::string& path, std::size_t depth) {
  if (value.is_dict()) return listed(nest_dict(std::move(value.as_dict()), path, depth), path);
  if (value.is_list()) {
    std::size_t index = 0;
    for (Value& element : value.as_list()) {
      element = nest_value(std::move(element), joined(path, std::to_string(index)), depth + 1);
      ++index;
    }
  }
  return value;
}

}  // namespace

Keyval parse_keyval(std::string_view text, const KeyvalSyntax& syntax) {
  Keyval result;
  if (text.empty() && syntax.empty_end == KeyvalSyntax::Empty::refused) {
    throw Error(EINVAL, "Empty list of parameters");
  }
  std::string_view rest = text;
  bool first = true;
  while (!rest.empty()) {
    const std::size_t stop = rest.find_first_of("=,");
    if (stop == std::string_view::npos || rest[stop] == ',') {
      std::string word = take_value(rest);
      if (word.empty()) throw Error(EINVAL, "Empty parameter in a list: a comma too many");
      add_bare_word(result, std::move(word), first, syntax);
    } else {
      const std::string key(rest.substr(0, stop));
      if (key.empty()) throw Error(EINVAL, "Parameter without a name before '='");
      rest.remove_prefix(stop + 1);
      result.options.set(key, take_value(rest));
    }
    first = false;
  }
  if (syntax.empty_end == KeyvalSyntax::Empty::refused && text.ends_with(',')) {
    // An even run of commas at the end belongs to the last value.
    const std::size_t last = text.find_last_not_of(',');
    const std::size_t commas = text.size() - (last == std::string_view::npos ? 0 : last + 1);
    if (commas % 2 != 0) throw Error(EINVAL, "Empty parameter in a list: a comma too many");
  }
  return result;
}

bool asks_for_help(std::string_view text) {
  while (!text.empty()) {
    const std::string word = take_value(text);
    if (word == "help" || word == "?") return true;
  }
  return false;
}

Value::Dict nest_dotted_keys(Value::Dict flat) { return nest_dict(std::move(flat), "", 0); }

Keyval parse_image_options(std::string_view text) {
  Keyval result = parse_keyval(text, image_options_syntax);
  result.options = nest_dotted_keys(std::move(result.options));
  return result;
}

}  // namespace vise
