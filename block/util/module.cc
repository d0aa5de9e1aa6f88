#include "util/module.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "vise-config.h"
#include "vise/error.h"

namespace vise {

namespace {

constexpr const char* entry_symbol = "vise_module";

// Next to the installed library, in the build tree, where it was configured to be installed. Not in
// VISE_PLUGIN_PATH: what lies there keeps to the public headers.
std::string find_module(const std::string& file) {
  const std::filesystem::path& library = library_folder();
  const std::array folders = {library / "vise" / "modules", library / "modules",
                              std::filesystem::path(VISE_MODULE_DIR)};
  for (const std::filesystem::path& folder : folders) {
    std::error_code ignored;
    const std::filesystem::path path = folder / file;
    if (std::filesystem::exists(path, ignored)) return path.string();
  }
  throw Error(ENOENT, fmt::format("The module '{}' is not installed: it is missing in '{}'", file,
                                  folders[0].string()));
}

}  // namespace

const std::filesystem::path& library_folder() {
  static const std::filesystem::path folder = [] {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&library_folder), &info) == 0) {
      return std::filesystem::path();
    }
    std::error_code ignored;
    return std::filesystem::absolute(info.dli_fname, ignored).parent_path();
  }();
  return folder;
}

const Module& load_module(std::string_view name) {
  return load_module_file(find_module(fmt::format("{}.so", name)));
}

const Module& load_module_file(const std::string& path) {
  // Never unloaded: objects of the module, and the thread-local ones of what it pulls in, may
  // outlive everything that could keep count.
  void* const library = dlopen(path.c_str(), RTLD_LAZY | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    const char* reason = dlerror();
    throw Error(ELIBACC, fmt::format("Could not load module '{}': {}", path,
                                     reason != nullptr ? reason : "unknown error"));
  }
  using EntryPoint = const Module* (*)();
  const auto entry = reinterpret_cast<EntryPoint>(dlsym(library, entry_symbol));
  if (entry == nullptr) {
    throw Error(ELIBBAD, fmt::format("'{}' is no module of Vise: it has no function '{}'", path,
                                     entry_symbol));
  }
  const Module* module = entry();
  if (std::string_view(module->version) != VISE_VERSION) {
    throw Error(ELIBBAD, fmt::format("Module '{}' belongs to version {} of Vise, this is {}", path,
                                     module->version, VISE_VERSION));
  }
  return *module;
}

}  // namespace vise
