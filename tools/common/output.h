// What the programs print where: results on stdout, everything else on stderr.
#pragma once

#include <string>
#include <string_view>

#include "vise/error.h"

namespace vise::tools {

/// Who is running: the last component of argv[0], in front of every message.
struct Program {
  std::string name;
};

/// Writes `text` to stdout as it is. Failures show in finish_output().
void print(std::string_view text);
/// "PROGRAM: message" and, on its own line, the hint.
void print_error(const Program& program, const Error& error);
void print_error(const Program& program, std::string_view message);
/// "PROGRAM: warning: message".
void print_warning(const Program& program, std::string_view message);

/// Flushes stdout. Gives `status`, or 1 with a message if anything could not be written and
/// `status` is 0: a script must not take half an answer for a whole one.
int finish_output(const Program& program, int status);

/// The two lines of --version.
std::string version_text(const Program& program);

/// The last component of argv[0].
std::string program_name(const char* argv0);

}  // namespace vise::tools
