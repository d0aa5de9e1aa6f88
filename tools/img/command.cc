#include "tools/img/command.h"

#include <fmt/format.h>

#include <cerrno>

#include "codec/codec.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise::tools {

std::span<const Subcommand* const> subcommands() {
  static constexpr const Subcommand* table[] = {
      &amend_command,   &bench_command,   &bitmap_command,   &check_command,
      &commit_command,  &compare_command, &compress_command, &convert_command,
      &create_command,  &dd_command,      &info_command,     &map_command,
      &measure_command, &rebase_command,  &resize_command,   &snapshot_command,
  };
  return table;
}

OutputFormat output_format(const Arguments& arguments) {
  const std::string text = arguments.value_or(key::output, "human");
  if (text == "human") return OutputFormat::human;
  if (text == "json") return OutputFormat::json;
  throw Error(EINVAL, fmt::format("--output must be human or json, not '{}'", text));
}

std::uint64_t size_argument(const std::string& text, std::string_view what) {
  try {
    const std::uint64_t size = parse_size(text);
    if (size <= INT64_MAX) return size;
  } catch (const Error& error) {
    if (error.code() != ERANGE) {
      throw Error(EINVAL, fmt::format("Invalid {} '{}'", what, text))
          .with_hint(
              "Sizes are bytes, or numbers with a suffix k, M, G, T, P or E (1024-fold "
              "each)");
    }
  }
  throw Error(ERANGE, fmt::format("Invalid {} '{}': must be from 0 to {}", what, text, INT64_MAX));
}

std::uint64_t number_argument(const std::string& text, std::string_view what, std::uint64_t least,
                              std::uint64_t most) {
  const std::uint64_t number = size_argument(text, what);
  if (number >= least && number <= most) return number;
  throw Error(EINVAL, fmt::format("Invalid {} {}: must be from {} to {}", what, text, least, most));
}

int level_argument(const std::string& text) {
  if (text == "fastest") return codec::fastest;
  return static_cast<int>(number_argument(text, "compression level", 1, 19));
}

void expect_operands(const Arguments& arguments, std::size_t least, std::size_t most,
                     std::string_view expected) {
  const std::size_t count = arguments.operands.size();
  if (count < least) throw UsageError(fmt::format("Expecting {}", expected));
  if (count > most) {
    throw UsageError(fmt::format("Unexpected argument: {}", arguments.operands[most]));
  }
}

}  // namespace vise::tools
