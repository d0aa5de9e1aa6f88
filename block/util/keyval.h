// Option strings: "key=value,key=value" as --image-opts, -o, --object and --blockdev take them,
// and dotted keys turned into nested dictionaries and lists.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "vise/value.h"

namespace vise {

/// How one kind of option string is read.
struct KeyvalSyntax {
  /// What a first word without '=' is the value of; empty: it is treated like later words.
  std::string_view implied_key = {};
  /// Words without '=': refused, or WORD=on (and noWORD=off where `negation` says so).
  enum class BareWords { refused, mean_on };
  BareWords bare_words = BareWords::refused;
  /// Is one comma at the end allowed, and an empty string? (--image-opts: yes, -o: no)
  enum class Empty { refused, allowed };
  Empty empty_end = Empty::refused;
};

/// --image-opts and its relatives; a first bare word is the node name `file`.
inline constexpr KeyvalSyntax image_options_syntax{.implied_key = "file",
                                                   .bare_words = KeyvalSyntax::BareWords::mean_on,
                                                   .empty_end = KeyvalSyntax::Empty::allowed};

/// `-o` of create, convert and amend. "help" and "?" are words of their own: see asks_for_help().
inline constexpr KeyvalSyntax creation_options_syntax{.bare_words =
                                                          KeyvalSyntax::BareWords::mean_on};

/// What parse_keyval() found.
struct Keyval {
  Value::Dict options;                  // all values are strings; keys as written, not nested
  std::vector<std::string> bare_words;  // later words without '=', to warn about
};

/// Splits `text` at commas (a doubled one is a comma in a value). A repeated key: the last one
/// counts. Blanks are not trimmed. Throws Error(EINVAL).
Keyval parse_keyval(std::string_view text, const KeyvalSyntax& syntax);

/// True if "help" or "?" stands for itself anywhere in a list of options.
bool asks_for_help(std::string_view text);

/// Turns dotted keys into nested dictionaries, and dictionaries whose keys are 0, 1, 2, … into
/// lists, at every level: {"a.b": 1, "c.0": 2} becomes {"a": {"b": 1}, "c": [2]}.
/// Throws Error(EINVAL) for empty parts, a key that is both a value and has members, and lists
/// with gaps.
Value::Dict nest_dotted_keys(Value::Dict flat);

/// One --image-opts style string; its options nested.
Keyval parse_image_options(std::string_view text);

}  // namespace vise
