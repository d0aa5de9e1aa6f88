// The JSON parser. Written by hand, as the language is not quite RFC 8259: single quotes are
// allowed, duplicate keys are not, and every error has a position. The printer is json_print.cc.
#include "util/json.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cstdint>
#include <optional>
#include <unordered_set>
#include <utility>

#include "util/utf8.h"
#include "vise/error.h"

namespace vise::json {
namespace {

class Parser {
 public:
  Parser(std::string_view text, const Limits& limits) : text_(text), limits_(limits) {}

  Value parse_all() {
    if (text_.size() > limits_.size) {
      throw Error(EINVAL, fmt::format("JSON text of {} bytes is longer than {} bytes", text_.size(),
                                      limits_.size));
    }
    skip_blanks();
    Value value = parse_value(0);
    skip_blanks();
    if (!at_end()) fail(fmt::format("unexpected {} after the value", found()));
    return value;
  }

 private:
  bool at_end() const { return position_ == text_.size(); }
  char peek() const { return text_[position_]; }
  bool looking_at(char c) const { return !at_end() && peek() == c; }

  void skip_blanks() {
    while (!at_end() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) {
      ++position_;
    }
  }

  [[noreturn]] void fail(std::string_view what) const { fail_at(position_, what); }

  [[noreturn]] void fail_at(std::size_t position, std::string_view what) const {
    std::size_t line = 1;
    std::size_t line_start = 0;
    for (std::size_t i = 0; i < position; ++i) {
      if (text_[i] == '\n') {
        ++line;
        line_start = i + 1;
      }
    }
    throw Error(EINVAL, fmt::format("invalid JSON at line {}, column {}: {}", line,
                                    position - line_start + 1, what));
  }

  /// What stands here, in words.
  std::string found() const {
    if (at_end()) return "end of text";
    const auto byte = static_cast<unsigned char>(peek());
    if (byte < 0x20 || byte >= 0x7f) return fmt::format("byte 0x{:02x}", byte);
    return fmt::format("'{}'", peek());
  }

  Value parse_value(std::size_t depth) {
    if (at_end()) fail("expected a value, found end of text");
    switch (peek()) {
      case '{':
        return parse_dict(depth);
      case '[':
        return parse_list(depth);
      case '"':
      case '\'':
        return parse_string();
      default:
        break;
    }
    const char c = peek();
    if (c == '-' || (c >= '0' && c <= '9')) return parse_number();
    if (c >= 'a' && c <= 'z') return parse_keyword();
    fail(fmt::format("expected a value, found {}", found()));
  }

  Value parse_keyword() {
    const std::size_t start = position_;
    while (!at_end() && ((peek() >= 'a' && peek() <= 'z') || (peek() >= 'A' && peek() <= 'Z') ||
                         (peek() >= '0' && peek() <= '9') || peek() == '_')) {
      ++position_;
    }
    const std::string_view word = text_.substr(start, position_ - start);
    if (word == "true") return true;
    if (word == "false") return false;
    if (word == "null") return {};
    fail_at(start, fmt::format("'{}' is not one of true, false, null", word.substr(0, 32)));
  }

  void check_depth(std::size_t depth) const {
    if (depth >= limits_.depth) fail(fmt::format("nested deeper than {} levels", limits_.depth));
  }

  Value parse_list(std::size_t depth) {
    check_depth(depth);
    ++position_;
    Value::List list;
    skip_blanks();
    if (looking_at(']')) {
      ++position_;
      return list;
    }
    for (;;) {
      skip_blanks();
      list.push_back(parse_value(depth + 1));
      skip_blanks();
      if (looking_at(']')) break;
      if (!looking_at(',')) fail(fmt::format("expected ',' or ']', found {}", found()));
      ++position_;
    }
    ++position_;
    return list;
  }

  Value parse_dict(std::size_t depth) {
    check_depth(depth);
    ++position_;
    Value::Dict dict;
    std::unordered_set<std::string> keys;
    skip_blanks();
    if (looking_at('}')) {
      ++position_;
      return dict;
    }
    for (;;) {
      parse_member(dict, keys, depth);
      skip_blanks();
      if (looking_at('}')) break;
      if (!looking_at(',')) fail(fmt::format("expected ',' or '}}', found {}", found()));
      ++position_;
    }
    ++position_;
    return dict;
  }

  void parse_member(Value::Dict& dict, std::unordered_set<std::string>& keys, std::size_t depth) {
    skip_blanks();
    const std::size_t start = position_;
    if (!looking_at('"') && !looking_at('\'')) {
      fail(fmt::format("expected a key in quotes, found {}", found()));
    }
    std::string key = parse_string();
    if (!keys.insert(key).second) {
      fail_at(start, fmt::format("duplicate key {}", quote(key)));
    }
    skip_blanks();
    if (!looking_at(':')) fail(fmt::format("expected ':', found {}", found()));
    ++position_;
    skip_blanks();
    dict.append(std::move(key), parse_value(depth + 1));
  }

  std::string parse_string() {
    const char delimiter = peek();
    const std::size_t start = position_++;
    std::string result;
    for (;;) {
      if (at_end()) fail_at(start, "string without end");
      const auto byte = static_cast<unsigned char>(peek());
      if (peek() == delimiter) break;
      if (byte < 0x20) fail(fmt::format("control character 0x{:02x} in a string", byte));
      if (peek() == '\\') {
        parse_escape(result);
      } else if (byte < 0x80) {
        result += peek();
        ++position_;
      } else {
        const auto code_point = decode_utf8(text_.substr(position_));
        if (!code_point) fail(fmt::format("byte 0x{:02x} is not valid UTF-8", byte));
        result += text_.substr(position_, code_point->length);
        position_ += code_point->length;
      }
    }
    ++position_;
    return result;
  }

  void parse_escape(std::string& result) {
    const std::size_t start = position_++;
    if (at_end()) fail_at(start, "string without end");
    const char c = peek();
    ++position_;
    constexpr std::string_view letters = "\"'\\/bfnrt";
    constexpr std::string_view meanings = "\"'\\/\b\f\n\r\t";
    if (const std::size_t index = letters.find(c); index != std::string_view::npos) {
      result += meanings[index];
      return;
    }
    if (c != 'u') fail_at(start, "invalid escape sequence in a string");
    std::uint32_t code_point = parse_four_digits(start);
    if (code_point >= 0xdc00 && code_point < 0xe000) fail_at(start, "lone surrogate");
    if (code_point >= 0xd800 && code_point < 0xdc00) {
      if (text_.substr(position_, 2) != "\\u") fail_at(start, "lone surrogate");
      position_ += 2;
      const std::uint32_t low = parse_four_digits(start);
      if (low < 0xdc00 || low >= 0xe000) fail_at(start, "lone surrogate");
      code_point = 0x10000 + ((code_point - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(result, code_point);
  }

  std::uint32_t parse_four_digits(std::size_t escape_start) {
    const std::string_view digits = text_.substr(position_, 4);
    std::uint32_t value = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) {
      fail_at(escape_start, "\\u without four hexadecimal digits");
    }
    position_ += 4;
    return value;
  }

  std::size_t skip_digits() {
    const std::size_t start = position_;
    while (!at_end() && peek() >= '0' && peek() <= '9') ++position_;
    return position_ - start;
  }

  Value parse_number() {
    const std::size_t start = position_;
    if (looking_at('-')) ++position_;
    const bool leading_zero = looking_at('0');
    const std::size_t digits = skip_digits();
    if (digits == 0) fail_at(start, "'-' without digits");
    if (leading_zero && digits > 1) fail_at(start, "number with a leading zero");
    bool is_integer = true;
    if (looking_at('.')) {
      is_integer = false;
      ++position_;
      if (skip_digits() == 0) fail_at(start, "number without digits after '.'");
    }
    if (looking_at('e') || looking_at('E')) {
      is_integer = false;
      ++position_;
      if (looking_at('+') || looking_at('-')) ++position_;
      if (skip_digits() == 0) fail_at(start, "number without digits in its exponent");
    }
    const std::string_view text = text_.substr(start, position_ - start);
    if (is_integer) {
      if (const auto integer = to_integer(text)) return *integer;
    }
    double number = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), number);
    if (result.ec != std::errc()) fail_at(start, "number out of range");
    return number;
  }

  static std::optional<Value> to_integer(std::string_view text) {
    const char* const end = text.data() + text.size();
    std::int64_t integer = 0;
    if (std::from_chars(text.data(), end, integer).ec == std::errc()) return Value(integer);
    std::uint64_t large = 0;
    if (std::from_chars(text.data(), end, large).ec == std::errc()) return Value(large);
    return std::nullopt;
  }

  std::string_view text_;
  Limits limits_;
  std::size_t position_ = 0;
};

}  // namespace

Value parse(std::string_view text, const Limits& limits) {
  return Parser(text, limits).parse_all();
}

}  // namespace vise::json
