#include "tools/common/output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "vise-config.h"

namespace vise::tools {

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void print_error(const Program& program, std::string_view message) {
  const std::string line = fmt::format("{}: {}\n", program.name, message);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

void print_error(const Program& program, const Error& error) {
  print_error(program, error.message());
  if (!error.hint().empty()) std::fputs((error.hint() + "\n").c_str(), stderr);
}

void print_warning(const Program& program, std::string_view message) {
  print_error(program, fmt::format("warning: {}", message));
}

int finish_output(const Program& program, int status) {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (flushed && std::ferror(stdout) == 0) return status;
  const int code = errno != 0 ? errno : EIO;
  print_error(program, fmt::format("standard output: {}", std::strerror(code)));
  return status != 0 ? status : 1;
}

std::string version_text(const Program& program) {
  return fmt::format("{} version {}\nCopyright (c) the Vise authors, MIT license\n", program.name,
                     VISE_VERSION);
}

std::string program_name(const char* argv0) {
  const std::string path = argv0 != nullptr ? argv0 : "vise";
  return path.substr(path.rfind('/') + 1);
}

}  // namespace vise::tools
