// Loading the parts of the library that are files of their own.
#include "util/module.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>

#include "vise-config.h"
#include "vise/error.h"

namespace vise {
namespace {

std::string path_of(const std::string& name) {
  return std::filesystem::canonical("/proc/self/exe").parent_path() / "plugins" /
         ("vise-" + name + ".so");
}

void expect_refused(const std::string& path, int code, const std::string& text) {
  try {
    load_module_file(path);
    ADD_FAILURE() << path << " was loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
  }
}

TEST(Module, IsLoadedOnceWhoeverAsks) {
  const Module& module = load_module_file(path_of("good_module"));
  EXPECT_EQ(*static_cast<const int*>(module.interface), 42);
  EXPECT_EQ(&load_module_file(path_of("good_module")), &module);
}

TEST(Module, OfAnotherVersionIsRefusedWithBoth) {
  expect_refused(path_of("old_module"), ELIBBAD,
                 "belongs to version 0.0.0-test of Vise, this is " VISE_VERSION);
}

TEST(Module, WithoutItsFunctionIsRefused) {
  expect_refused(path_of("no_entry"), ELIBBAD, "no function 'vise_module'");
}

TEST(Module, ThatCannotBeLoadedIsNamedWithTheReason) {
  const auto path = std::filesystem::temp_directory_path() / "vise-broken-module.so";
  std::ofstream(path) << "not an object file";
  expect_refused(path, ELIBACC, "Could not load module");
  std::filesystem::remove(path);
}

TEST(Module, ThatIsMissingIsNamedWithTheFolder) {
  try {
    load_module("no-such-module");
    ADD_FAILURE() << "it was loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ENOENT);
    const std::string folder = library_folder() / "vise" / "modules";
    EXPECT_EQ(error.what(),
              "The module 'no-such-module.so' is not installed: it is missing in '" + folder + "'");
  }
}

}  // namespace
}  // namespace vise
