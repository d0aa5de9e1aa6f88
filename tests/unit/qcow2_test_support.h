// What the tests of the qcow2 metadata share: images in memory, files, and the real qemu-img.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "format/qcow2/create_layout.h"
#include "format/qcow2/create_options.h"
#include "vise/error.h"

namespace vise::qcow2 {

/// A folder that is gone when the test ends.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "vise-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error::system_error(errno, name);
    path_ = name;
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

struct CommandResult {
  int status;
  std::string output;  // stdout
};

inline CommandResult run_command(const std::string& command) {
  CommandResult result{};
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) throw Error::system_error(errno, command);
  char buffer[4096];
  for (std::size_t n; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
    result.output.append(buffer, n);
  }
  const int status = pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

inline bool have_qemu_img() {
  static const bool there = run_command("qemu-img --version 2>/dev/null").status == 0;
  return there;
}

inline std::vector<std::byte> read_file(const std::string& name) {
  std::ifstream in(name, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

inline void write_file(const std::string& name, const std::vector<std::byte>& bytes) {
  std::ofstream out(name, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

/// A new image in memory, made from options as they are typed.
inline std::vector<std::byte> new_image(const Value::Dict& options, std::uint64_t size) {
  const CreateOptions parsed = CreateOptions::parse(options);
  Header header = parsed.header(size);
  const auto kind = parsed.preallocation == Preallocation::off ? CreateLayout::Kind::plain
                                                               : CreateLayout::Kind::preallocated;
  const CreateLayout layout = CreateLayout::make(header, kind);
  std::vector<std::byte> image(layout.clusters << header.cluster_bits);
  const std::vector<std::byte> first = header.encode();
  std::copy(first.begin(), first.end(), image.begin());
  for (std::uint64_t c = 1; c < layout.metadata_end(); ++c) {
    layout.fill(header, c,
                std::span(image).subspan(c << header.cluster_bits, header.cluster_size()));
  }
  image.resize(layout.file_length(header));
  return image;
}

/// The seed of a random test: VISE_TEST_SEED, or a new one each time.
inline unsigned test_seed() {
  const char* fixed = std::getenv("VISE_TEST_SEED");
  return fixed != nullptr ? static_cast<unsigned>(std::strtoul(fixed, nullptr, 0))
                          : std::random_device{}();
}

/// Fails unless `function` throws Error with that errno and a message that contains `text`.
template <class Function>
void expect_error(int code, const std::string& text, Function function) {
  try {
    function();
    ADD_FAILURE() << "no error where '" << text << "' was expected";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_NE(error.message().find(text), std::string::npos) << error.what();
  }
}

}  // namespace vise::qcow2
