#include "filter/blkdebug_config.h"

#include <fmt/format.h>

#include <cerrno>
#include <fstream>
#include <iterator>

#include "vise/error.h"

namespace vise {

namespace {

constexpr std::size_t most_bytes = 1u << 20;  // of a file, which may be /dev/zero

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view blanks = " \t\r";
  const auto first = text.find_first_not_of(blanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

class Parser {
 public:
  void take(std::string_view line) {
    ++number_;
    const std::string_view text = trimmed(line);
    if (text.empty() || text.front() == '#') return;
    if (text.front() == '[') {
      begin_section(text);
    } else {
      set(text);
    }
  }

  Value::Dict finish() && { return std::move(sections_); }

 private:
  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(EINVAL, fmt::format("line {}: {}", number_, reason));
  }

  void begin_section(std::string_view text) {
    std::string_view name =
        text.back() == ']' ? trimmed(text.substr(1, text.size() - 2)) : std::string_view();
    // [inject-error "title"]: whatever the title, it is a rule of its own.
    const auto quote = name.find('"');
    if (quote != std::string_view::npos && quote + 1 < name.size() && name.back() == '"') {
      name = trimmed(name.substr(0, quote));
    }
    if (name != "inject-error" && name != "set-state") {
      fail(fmt::format("unknown section '{}': must be [inject-error] or [set-state]", text));
    }
    Value& list = sections_[name];
    if (!list.is_list()) list = Value::List();
    list.as_list().emplace_back(Value::Dict());
    section_ = name;
  }

  void set(std::string_view text) {
    const auto equals = text.find('=');
    const std::string_view key = trimmed(text.substr(0, equals));
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : trimmed(text.substr(equals + 1));
    const bool quoted = value.size() >= 2 && value.front() == '"' && value.back() == '"' &&
                        value.find('"', 1) == value.size() - 1;
    if (key.empty() || !quoted) {
      fail(fmt::format("'{}' must be a section or KEY = \"VALUE\"", text));
    }
    if (section_.empty()) fail("there is no section before the first key");
    Value::Dict& rule = sections_.find(section_)->as_list().back().as_dict();
    if (rule.contains(key)) fail(fmt::format("key '{}' is there twice", key));
    rule.set(key, std::string(value.substr(1, value.size() - 2)));
  }

  Value::Dict sections_;
  std::string section_;  // the current one
  unsigned number_ = 0;  // of the line
};

}  // namespace

Value::Dict parse_blkdebug_config(std::string_view text) {
  Parser parser;
  while (!text.empty()) {
    const auto end = std::min(text.find('\n'), text.size());
    parser.take(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return std::move(parser).finish();
}

Value::Dict read_blkdebug_config(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text(most_bytes, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file && !file.eof()) {
    throw Error::system_error(errno != 0 ? errno : EIO,
                              fmt::format("Could not read blkdebug config file '{}'", path));
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  try {
    if (text.size() == most_bytes) {
      throw Error(EFBIG, fmt::format("more than {} bytes", most_bytes - 1));
    }
    return parse_blkdebug_config(text);
  } catch (Error& error) {
    error.add_context(fmt::format("blkdebug config file '{}'", path));
    throw;
  }
}

}  // namespace vise
