// The subcommands of vise-img. Each has a file of its own, with its option table.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/output.h"

namespace vise::tools {

struct Subcommand {
  std::string_view name;
  std::string_view operands;  // as help shows them
  std::string_view summary;
  std::span<const OptionSpec> options;
  /// The exit code of a usage error or failure that run() lets through.
  int (*run)(const Program& program, const Arguments& arguments);
  /// Changes the command line before its options are taken apart. May be null.
  std::vector<std::string> (*prepare)(std::vector<std::string> words) = nullptr;
};

extern const Subcommand amend_command;
extern const Subcommand bench_command;
extern const Subcommand bitmap_command;
extern const Subcommand check_command;
extern const Subcommand commit_command;
extern const Subcommand compare_command;
extern const Subcommand compress_command;
extern const Subcommand convert_command;
extern const Subcommand create_command;
extern const Subcommand dd_command;
extern const Subcommand info_command;
extern const Subcommand map_command;
extern const Subcommand measure_command;
extern const Subcommand rebase_command;
extern const Subcommand resize_command;
extern const Subcommand snapshot_command;

/// All of them, sorted by name.
std::span<const Subcommand* const> subcommands();

enum class OutputFormat { human, json };
/// The value of --output. Throws Error(EINVAL) for anything but human and json.
OutputFormat output_format(const Arguments& arguments);

/// `text` as a size up to 2^63 - 1. Throws Error(EINVAL / ERANGE) that names `what`.
std::uint64_t size_argument(const std::string& text, std::string_view what);

/// An integer from `least` to `most`, in sizes' notation. Throws Error(EINVAL) that names `what`.
std::uint64_t number_argument(const std::string& text, std::string_view what, std::uint64_t least,
                              std::uint64_t most);

/// The value of --level: a number or "fastest". Which levels there are depends on the codec:
/// codec::check_level(), once the image is open. Throws Error(EINVAL) for what is no codec's.
int level_argument(const std::string& text);

/// Throws UsageError unless there are from `least` to `most` operands; `expected` names the first
/// missing one.
void expect_operands(const Arguments& arguments, std::size_t least, std::size_t most,
                     std::string_view expected);

}  // namespace vise::tools
