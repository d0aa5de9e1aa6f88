#include "util/secret.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <memory>

#include "vise/error.h"

namespace vise {

std::string Secret::read_file(const std::string& path) {
  constexpr std::size_t most = 64u << 10;
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "re"), close);
  if (file == nullptr) {
    throw Error::system_error(errno, fmt::format("Could not open the secret '{}'", path));
  }
  std::string text(most + 1, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file.get()));
  if (std::ferror(file.get()) != 0) {
    throw Error(EIO, fmt::format("Could not read the secret '{}'", path));
  }
  if (text.size() > most) {
    throw Error(EFBIG, fmt::format("The secret '{}' is longer than {} bytes", path, most));
  }
  return text;
}

}  // namespace vise
