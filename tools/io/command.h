// What a command of vise-io is. The table is in table.cc; the commands are grouped by family in
// the files named *_commands.cc.
#pragma once

#include <climits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/open.h"
#include "vise/sync.h"

namespace vise::tools {

/// Bad input to a command: the text has been printed, the command has failed.
class CommandFailed : public std::exception {
 public:
  const char* what() const noexcept override { return "the command failed"; }
};

struct Command;

/// What the commands work on.
class IoState {
 public:
  explicit IoState(ImageSession& session) : session_(session) {}

  ImageSession& session() { return session_; }
  const Program& program() const { return session_.program(); }

  /// The open image; null if none is open.
  Child* image() const { return image_; }
  /// Its node, without the filter that -C puts above.
  Node& image_node() const;
  /// Opens `arguments` as the image. Throws Error.
  Task<void> open_image(ImageArguments arguments);
  /// Waits for outstanding requests, then closes the image.
  Task<void> close_image();
  const ImageArguments& image_arguments() const { return image_arguments_; }
  /// Changes flags of the open image that the next write looks at.
  ImageArguments& image_arguments() { return image_arguments_; }

  TaskScope& outstanding() { return outstanding_; }

  bool image_opts = false;  // is PATH of the open command an option string?
  bool misaligned = false;  // -m: buffers that are not aligned
  bool quit = false;

 private:
  ImageSession& session_;
  Child* image_ = nullptr;
  ImageArguments image_arguments_;
  TaskScope outstanding_;
};

/// One call of a command.
struct Call {
  IoState& state;
  const Command& command;
  Arguments arguments;  // after the command's name

  /// The operand at `index`, a size up to 2^63 - 1; prints the reason and fails if it is none.
  std::uint64_t size_operand(std::size_t index) const;
  /// The same for any text.
  static std::uint64_t size_value(const std::string& text);
  /// Prints "NAME ARGS -- SUMMARY" and fails.
  [[noreturn]] void fail_with_usage() const;
  /// Prints a line on stdout and fails.
  [[noreturn]] static void fail(std::string_view line);
};

struct Command {
  std::string_view name;
  std::string_view short_name;  // one letter, or empty
  std::string_view arguments;   // as help shows them
  std::string_view summary;
  std::string_view help;     // the lines of `help NAME`, empty if the summary says all
  unsigned least_words = 0;  // after the name, options included
  unsigned most_words = UINT_MAX;
  std::span<const OptionSpec> options;
  enum class Needs { nothing, image, writable_image } needs = Needs::image;
  /// Throws CommandFailed, UsageError or Error on failure.
  Task<void> (*run)(Call& call);
};

/// All commands, sorted by name.
std::span<const Command> commands();
/// By name or short name; null if there is none.
const Command* find_command(std::string_view name);

/// "NAME ARGS -- SUMMARY" with a newline.
std::string usage_line(const Command& command);

/// All values of -o as one option string.
std::string joined_options(const Arguments& arguments);

/// Options that open takes as vise-io itself does: -r -n -t -d -U -i -k. Others are left alone.
void apply_image_option(const Arguments::Option& option, ImageArguments& image);

/// Runs one line of input. False if it failed; the reason has been printed.
Task<bool> run_line(IoState& state, std::string line);

/// Words as vise-io splits them: at blanks only, no quoting.
std::vector<std::string> split_words(std::string_view line);

// The families.
Task<void> run_open(Call& call);
Task<void> run_close(Call& call);
Task<void> run_reopen(Call& call);
Task<void> run_flush(Call& call);
Task<void> run_truncate(Call& call);
Task<void> run_length(Call& call);
Task<void> run_info(Call& call);
Task<void> run_alloc(Call& call);
Task<void> run_map(Call& call);
Task<void> run_discard(Call& call);
Task<void> run_read(Call& call);
Task<void> run_readv(Call& call);
Task<void> run_aio_read(Call& call);
Task<void> run_write(Call& call);
Task<void> run_writev(Call& call);
Task<void> run_aio_write(Call& call);
Task<void> run_aio_flush(Call& call);
Task<void> run_break(Call& call);
Task<void> run_remove_break(Call& call);
Task<void> run_resume(Call& call);
Task<void> run_wait_break(Call& call);
Task<void> run_zone(Call& call);
Task<void> run_sleep(Call& call);
Task<void> run_quit(Call& call);
Task<void> run_help(Call& call);
Task<void> run_abort(Call& call);
Task<void> run_sigraise(Call& call);

}  // namespace vise::tools
