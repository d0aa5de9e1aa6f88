// Finding drivers by name, and loading the ones that are plugins.
#include "vise/driver_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "vise/error.h"
#include "vise/plugin.h"

namespace vise {
namespace {

constexpr const char* path_variable = "VISE_PLUGIN_PATH";

class DriverTableTest : public ::testing::Test {
 protected:
  DriverTableTest() { set_path(plugin_folder_); }
  ~DriverTableTest() override { unsetenv(path_variable); }

  static void set_path(const std::string& path) { setenv(path_variable, path.c_str(), 1); }
  std::string failure(std::string_view name, int* code = nullptr) {
    try {
      table_.get(name);
    } catch (const Error& error) {
      if (code != nullptr) *code = error.code();
      return error.what();
    }
    return {};
  }

  const std::string plugin_folder_ =
      std::filesystem::canonical("/proc/self/exe").parent_path() / "plugins";
  DriverTable table_;
};

TEST_F(DriverTableTest, BuiltInDriversAreThere) {
  for (const char* name : {"file", "host_device", "null-co", "null-aio", "raw"}) {
    EXPECT_EQ(table_.get(name).name, name);
  }
  EXPECT_EQ(table_.find("nothing"), nullptr);
}

TEST_F(DriverTableTest, CompressIsFoundInTheBuildTree) {
  unsetenv(path_variable);
  EXPECT_EQ(table_.get("compress").kind, DriverKind::filter);
  const auto names = table_.names();
  EXPECT_NE(std::find(names.begin(), names.end(), "compress"), names.end());
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
}

TEST_F(DriverTableTest, UnknownNamesLeadToTheNearest) {
  int code = 0;
  EXPECT_EQ(failure("compres", &code), "Unknown driver 'compres'; did you mean 'compress'?");
  EXPECT_EQ(code, ENOENT);
  EXPECT_EQ(failure("zzzzzzzzz"), "Unknown driver 'zzzzzzzzz'");
}

TEST_F(DriverTableTest, ADriverNameIsNoPath) {
  EXPECT_EQ(table_.find("../plugins/vise-misnamed"), nullptr);
  EXPECT_EQ(table_.find(""), nullptr);
}

TEST_F(DriverTableTest, AnotherAbiIsRefusedWithBothVersions) {
  int code = 0;
  const std::string text = failure("wrong_abi", &code);
  EXPECT_EQ(code, ELIBBAD);
  EXPECT_NE(text.find("vise-wrong_abi.so"), std::string::npos) << text;
  const std::string other = "for version " + std::to_string(plugin_abi_version + 41);
  const std::string ours = "is version " + std::to_string(plugin_abi_version);
  EXPECT_NE(text.find(other), std::string::npos) << text;
  EXPECT_NE(text.find(ours), std::string::npos) << text;
}

TEST_F(DriverTableTest, AFileThatIsNoPluginIsRefused) {
  EXPECT_NE(failure("no_entry").find("no function 'vise_plugin'"), std::string::npos);
  EXPECT_NE(failure("misnamed").find("holds no driver 'misnamed'"), std::string::npos);
}

TEST_F(DriverTableTest, ABrokenFileIsNamed) {
  const auto folder = std::filesystem::temp_directory_path() / "vise-broken-plugins";
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "vise-broken.so") << "not an object file";
  set_path("/nowhere::" + folder.string());
  int code = 0;
  const std::string text = failure("broken", &code);
  EXPECT_EQ(code, ELIBACC);
  EXPECT_NE(text.find((folder / "vise-broken.so").string()), std::string::npos) << text;
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace vise
