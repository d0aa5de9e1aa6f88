// The JSON printer: the layout of qemu-img's JSON outputs (reference: cli.md 1.5) and the one-line
// form of json:{…} names.
#include <fmt/format.h>

#include <cassert>
#include <cmath>
#include <iterator>

#include "util/json.h"
#include "util/utf8.h"

namespace vise::json {
namespace {

void append_quoted(std::string& out, std::string_view text) {
  const auto append_unit = [&](std::uint32_t unit) {
    fmt::format_to(std::back_inserter(out), "\\u{:04X}", unit);
  };
  out += '"';
  while (!text.empty()) {
    const auto decoded = decode_utf8(text);
    const std::uint32_t c = decoded ? decoded->value : 0xfffd;
    text.remove_prefix(decoded ? decoded->length : 1);
    constexpr std::string_view named = "\"\\\b\f\n\r\t";
    constexpr std::string_view letters = "\"\\bfnrt";
    const std::size_t index = c < 0x80 ? named.find(static_cast<char>(c)) : std::string_view::npos;
    if (index != std::string_view::npos) {
      out += '\\';
      out += letters[index];
    } else if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else if (c < 0x10000) {
      append_unit(c);
    } else {
      append_unit(0xd800 + ((c - 0x10000) >> 10));
      append_unit(0xdc00 + ((c - 0x10000) & 0x3ff));
    }
  }
  out += '"';
}

class Printer {
 public:
  enum class Layout { lines, one_line };
  explicit Printer(Layout layout) : layout_(layout) {}

  void print(const Value& value) {
    switch (value.type()) {
      case Value::Type::null:
        out_ += "null";
        break;
      case Value::Type::boolean:
        out_ += value.as_bool() ? "true" : "false";
        break;
      case Value::Type::integer:
        out_ += fmt::format_int(value.as_int()).c_str();
        break;
      case Value::Type::uinteger:
        out_ += fmt::format_int(value.as_uint()).c_str();
        break;
      case Value::Type::number:
        print_number(value.as_double());
        break;
      case Value::Type::string:
        append_quoted(out_, value.as_string());
        break;
      case Value::Type::list:
        print_list(value.as_list());
        break;
      case Value::Type::dict:
        print_dict(value.as_dict());
        break;
    }
  }

  std::string take() { return std::move(out_); }

 private:
  void print_number(double number) {
    assert(std::isfinite(number));
    fmt::format_to(std::back_inserter(out_), "{}", number);
  }

  void print_list(const Value::List& list) {
    open('[');
    bool first = true;
    for (const Value& value : list) {
      separate(first);
      first = false;
      print(value);
    }
    close(']');
  }

  void print_dict(const Value::Dict& dict) {
    open('{');
    bool first = true;
    for (const auto& [key, value] : dict) {
      separate(first);
      first = false;
      append_quoted(out_, key);
      out_ += ": ";
      print(value);
    }
    close('}');
  }

  void open(char bracket) {
    out_ += bracket;
    ++level_;
  }
  void separate(bool first) {
    if (layout_ == Layout::one_line) {
      if (!first) out_ += ", ";
      return;
    }
    if (!first) out_ += ',';
    new_line();
  }
  // Empty lists and dictionaries take two lines as well.
  void close(char bracket) {
    --level_;
    if (layout_ == Layout::lines) new_line();
    out_ += bracket;
  }
  void new_line() {
    out_ += '\n';
    out_.append(level_ * 4, ' ');
  }

  Layout layout_;
  std::size_t level_ = 0;
  std::string out_;
};

}  // namespace

std::string print(const Value& value) {
  Printer printer(Printer::Layout::lines);
  printer.print(value);
  return printer.take();
}

std::string print_line(const Value& value) {
  Printer printer(Printer::Layout::one_line);
  printer.print(value);
  return printer.take();
}

std::string quote(std::string_view text) {
  std::string out;
  append_quoted(out, text);
  return out;
}

}  // namespace vise::json
