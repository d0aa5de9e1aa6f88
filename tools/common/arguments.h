// The command lines of the programs: option tables, parsing as GNU getopt_long does it, help texts
// made from the same tables.
#pragma once

#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vise::tools {

/// One option a command takes.
struct OptionSpec {
  int key;                 // the short letter; above 255: the option has only a long name
  const char* long_name;   // without "--"; null: only the letter
  const char* value_name;  // as help shows it; null: the option takes no value
  const char* help;        // one line
};

/// Keys of options that have no letter. Those of one table must differ, so that each has one
/// number for all.
namespace key {
enum : int {
  image_opts = 256,
  source_image_opts,
  target_image_opts,
  object,
  output,
  target_is_zero,
  bitmaps,
  skip_broken_bitmaps,
  level,
  recompress,
  verify,
  salvage,
  left_format,
  right_format,
  bitmap_add,
  bitmap_remove,
  bitmap_clear,
  bitmap_enable,
  bitmap_disable,
  bitmap_merge,
  shrink,
  preallocation,
  force,
  pattern,
  flush_interval,
  no_drain,
  data,
  compact,
};
}

/// A command line taken apart, with options in the order given.
struct Arguments {
  struct Option {
    int key;
    std::string value;
  };
  std::vector<Option> options;
  std::vector<std::string> operands;

  bool has(int key) const;
  /// The value of the last such option, or null.
  const std::string* last(int key) const;
  /// The value of the last such option, or `otherwise`.
  std::string value_or(int key, std::string_view otherwise) const;
};

/// The command line is wrong in itself. The first line has been printed by then if the message is
/// empty; main adds the line that points at --help.
class UsageError : public std::exception {
 public:
  explicit UsageError(std::string_view message = {}) : message_(message) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

/// Takes `words` apart as GNU getopt_long does: options among operands, "--", bundled letters,
/// abbreviated long names. `program` stands in front of what getopt prints about a bad option;
/// throws UsageError (empty) after that. Stops at the first option whose key is in `final_keys`
/// (-h, -V), which is then the last element of options.
Arguments parse_arguments(std::string_view program, std::span<const std::string> words,
                          std::span<const OptionSpec> specs, std::string_view final_keys = "hV");

/// "  -f, --format=FMT     the image's format", one line for each option, in the table's order.
std::string describe_options(std::span<const OptionSpec> specs);

}  // namespace vise::tools
