// JSON text to Value and back. Reads what the field's tools read (single quotes, no duplicate
// keys, bounded depth) and prints in their two layouts.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "vise/value.h"

namespace vise::json {

struct Limits {
  std::size_t depth = 1024;                  // of nested lists and dictionaries
  std::size_t size = std::size_t{64} << 20;  // bytes of text
};

/// Parses one JSON value that fills all of `text` (blanks around it aside). Strings stand in double
/// or single quotes. Integers up to 2^64 - 1 stay exact, larger ones become numbers.
/// Throws Error(EINVAL) that says what was found where (line and column, in bytes, from 1).
Value parse(std::string_view text, const Limits& limits = {});

/// Four blanks of indent, one element per line, no newline at the end. Pure ASCII; bytes that are
/// no UTF-8 become \uFFFD. Numbers must be finite (asserted).
std::string print(const Value& value);

/// The same on one line, with ", " and ": " between elements: for json:{…} names and QMP.
std::string print_line(const Value& value);

/// `text` as a JSON string, quotes included, in the same pure ASCII.
std::string quote(std::string_view text);

}  // namespace vise::json
