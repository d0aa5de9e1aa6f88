// vise-img: finds the subcommand, takes its options apart, runs it.
#include <fmt/format.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/objects.h"
#include "tools/common/output.h"
#include "tools/common/program.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/driver_table.h"

namespace vise::tools {
namespace {

constexpr OptionSpec global_options[] = {
    {'h', "help", nullptr, "this help; after a subcommand, that one's"},
    shared::version,
    shared::trace,
};

std::string format_list() {
  DriverTable drivers;
  std::string text;
  std::string line = " ";
  for (const std::string& name : drivers.names()) {
    if (line.size() + 1 + name.size() > 75) {
      text += line;
      text += '\n';
      line.assign(1, ' ');
    }
    line += fmt::format(" {}", name);
  }
  text += line;
  text += '\n';
  return text;
}

std::string help_text(const Program& program) {
  std::string text = fmt::format(
      "Usage: {} [OPTION]... SUBCOMMAND [ARGUMENT]...\n"
      "Makes, converts and examines disk images.\n\nOptions:\n{}\nSubcommands:\n",
      program.name, describe_options(global_options));
  for (const Subcommand* command : subcommands()) {
    text += fmt::format("  {:<10} {}\n", command->name, command->summary);
  }
  text += fmt::format("\n'{} SUBCOMMAND --help' tells more about each.\n", program.name);
  return text + "\nSupported image formats:\n\n" + format_list();
}

std::string help_text(const Program& program, const Subcommand& command) {
  return fmt::format("Usage: {} {} [OPTION]... {}\nvise-img {}: {}.\n\nOptions:\n{}", program.name,
                     command.name, command.operands, command.name, command.summary,
                     describe_options(command.options));
}

int fail_usage(const Program& program, std::string_view message, std::string_view subcommand) {
  if (!message.empty()) print_error(program, message);
  const std::string gap = subcommand.empty() ? "" : " ";
  fmt::print(stderr, "Try '{}{}{} --help' for more information\n", program.name, gap, subcommand);
  return 1;
}

int run_subcommand(const Program& program, const Subcommand& command,
                   std::span<const std::string> words) {
  try {
    std::vector<std::string> prepared(words.begin(), words.end());
    if (command.prepare != nullptr) prepared = command.prepare(std::move(prepared));
    const Arguments arguments = parse_arguments(program.name, prepared, command.options, "h");
    if (answer_help(program, arguments, [&] { return help_text(program, command); })) return 0;
    if (answer_object_help(arguments)) return 0;
    return report_failure(program, [&] { return command.run(program, arguments); });
  } catch (const UsageError& error) {
    return fail_usage(program, error.what(), command.name);
  }
}

// Options in front of the subcommand; gives the index of its name.
std::size_t first_operand(std::span<const std::string> words) {
  std::size_t i = 0;
  while (i < words.size() && words[i].size() > 1 && words[i][0] == '-') {
    i += words[i] == "-T" || words[i] == "--trace" ? 2 : 1;
  }
  return std::min(i, words.size());
}

int main_of(const Program& program, std::span<const std::string> words) {
  const std::size_t first = first_operand(words);
  try {
    const Arguments arguments = parse_arguments(program.name, words.first(first), global_options);
    if (answer_help(program, arguments, [&] { return help_text(program); })) return 0;
  } catch (const UsageError& error) {
    return fail_usage(program, error.what(), "");
  }
  if (first == words.size()) return fail_usage(program, "Not enough arguments", "");
  for (const Subcommand* command : subcommands()) {
    if (command->name == words[first]) {
      return run_subcommand(program, *command, words.subspan(first + 1));
    }
  }
  return fail_usage(program, fmt::format("Subcommand not found: {}", words[first]), "");
}

}  // namespace
}  // namespace vise::tools

int main(int argc, char** argv) {
  return vise::tools::run_program(argc, argv, vise::tools::main_of);
}
