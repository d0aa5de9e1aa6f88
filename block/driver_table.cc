// Names every built-in driver, and loads the others. (No static initialisers: a driver that is
// neither here nor a plugin does not exist.)
#include "vise/driver_table.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "filter/filters.h"
#include "format/formats.h"
#include "protocol/nbd/client.h"
#include "protocol/protocols.h"
#include "util/module.h"
#include "vise-config.h"
#include "vise/error.h"
#include "vise/options.h"
#include "vise/plugin.h"

namespace vise {

namespace {

constexpr std::array built_in_drivers = {
    &blkdebug_driver,    &blkverify_driver, &copy_on_read_driver, &file_driver,
    &host_device_driver, &null_aio_driver,  &null_co_driver,      &preallocate_driver,
    &qcow2_driver,       &raw_driver,       &throttle_driver,
#ifndef VISE_PLUGINS
    &compress_driver,
#endif
};

// These are not linked in, but loaded when first named: see util/module.h.
struct LoadableDriver {
  std::string_view name;
  const DriverType& (*load)();
};
constexpr std::array loadable_drivers = {
    LoadableDriver{"nbd", []() -> const DriverType& { return *nbd::client().driver; }},
};

constexpr std::string_view file_prefix = "vise-";
constexpr std::string_view file_suffix = ".so";

// A driver name becomes part of a path.
bool is_driver_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
  });
}

// Where plugins are looked for, in this order: what the user said, the build tree that this library
// runs from, next to the installed library, where it was configured to be installed.
std::vector<std::filesystem::path> plugin_folders() {
  std::vector<std::filesystem::path> folders;
  if (const char* paths = std::getenv("VISE_PLUGIN_PATH")) {
    std::string_view rest = paths;
    while (!rest.empty()) {
      const std::string_view folder = rest.substr(0, rest.find(':'));
      if (!folder.empty()) folders.emplace_back(folder);
      rest.remove_prefix(std::min(rest.size(), folder.size() + 1));
    }
  }
  const std::filesystem::path& library = library_folder();
  if (!library.empty()) {
    folders.push_back(library / "filter" / "plugins");
    folders.push_back(library / "vise" / "plugins");
  }
  folders.emplace_back(VISE_PLUGIN_DIR);
  return folders;
}

struct LibraryCloser {
  void operator()(void* library) const { dlclose(library); }
};
using Library = std::unique_ptr<void, LibraryCloser>;

std::string last_dl_error() {
  const char* text = dlerror();
  return text != nullptr ? text : "unknown error";
}

}  // namespace

struct DriverTable::Plugin {
  std::string name;  // of the file, without folder, prefix and suffix
  Library library;
  const PluginInfo* info;

  /// Throws Error naming the file.
  static std::unique_ptr<Plugin> load(std::string name, const std::filesystem::path& path) {
    Library library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL));
    if (library == nullptr) {
      throw Error(ELIBACC,
                  fmt::format("Could not load plugin '{}': {}", path.string(), last_dl_error()));
    }
    using EntryPoint = const PluginInfo* (*)();
    const auto entry = reinterpret_cast<EntryPoint>(dlsym(library.get(), plugin_symbol));
    if (entry == nullptr) {
      throw Error(ELIBBAD, fmt::format("'{}' is no plugin of Vise: it has no function '{}'",
                                       path.string(), plugin_symbol));
    }
    const PluginInfo* info = entry();
    if (info == nullptr || info->abi_version != plugin_abi_version) {
      throw Error(
          ELIBBAD,
          fmt::format("Plugin '{}' was built for version {} of the plugin interface, this "
                      "is version {}",
                      path.string(), info != nullptr ? info->abi_version : 0, plugin_abi_version));
    }
    return std::unique_ptr<Plugin>(new Plugin{std::move(name), std::move(library), info});
  }
};

DriverTable::DriverTable() : types_(built_in_drivers.begin(), built_in_drivers.end()) {
  library_folder();  // while it can be found
}
DriverTable::~DriverTable() = default;

void DriverTable::add(const DriverType& type) { types_.push_back(&type); }

const DriverType* DriverTable::find_loaded(std::string_view name) const {
  for (const DriverType* type : types_) {
    if (type->name == name) return type;
  }
  return nullptr;
}

const DriverType* DriverTable::find(std::string_view name) {
  if (const DriverType* type = find_loaded(name)) return type;
  for (const LoadableDriver& driver : loadable_drivers) {
    if (driver.name == name) return types_.emplace_back(&driver.load());
  }
  if (!is_driver_name(name)) return nullptr;
  const std::string file = fmt::format("{}{}{}", file_prefix, name, file_suffix);
  for (const auto& folder : plugin_folders()) {
    std::error_code error;
    const std::filesystem::path path = folder / file;
    if (!std::filesystem::exists(path, error)) continue;
    std::unique_ptr<Plugin> plugin = Plugin::load(std::string(name), path);
    for (std::size_t i = 0; i < plugin->info->driver_count; ++i) {
      const DriverType& type = plugin->info->drivers[i];
      if (find_loaded(type.name) == nullptr) add(type);
    }
    plugins_.push_back(std::move(plugin));
    const DriverType* type = find_loaded(name);
    if (type == nullptr) {
      throw Error(ELIBBAD, fmt::format("Plugin '{}' holds no driver '{}'", path.string(), name));
    }
    return type;
  }
  return nullptr;
}

const DriverType& DriverTable::get(std::string_view name) {
  if (const DriverType* type = find(name)) return *type;
  std::string message = fmt::format("Unknown driver '{}'", name);
  if (const auto nearest = nearest_name(name, names())) {
    message += fmt::format("; did you mean '{}'?", *nearest);
  }
  throw Error(ENOENT, message);
}

const DriverType& DriverTable::probe(std::span<const std::byte> head) {
  const DriverType* best = &raw_driver;
  int best_score = 0;
  for (const DriverType* type : types_) {
    const int score = type->probe != nullptr ? type->probe(head) : 0;
    if (score <= best_score) continue;
    best = type;
    best_score = score;
  }
  if (best != &raw_driver) return *best;
  const DriverType* foreign = probe_foreign(head);
  return foreign != nullptr ? *foreign : raw_driver;
}

std::vector<std::string> DriverTable::names() {
  std::vector<std::string> names;
  for (const DriverType* type : types_) names.emplace_back(type->name);
  for (const LoadableDriver& driver : loadable_drivers) names.emplace_back(driver.name);
  for (const auto& folder : plugin_folders()) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      const std::string file = entry.path().filename().string();
      if (!file.starts_with(file_prefix) || !file.ends_with(file_suffix)) continue;
      const std::string name =
          file.substr(file_prefix.size(), file.size() - file_prefix.size() - file_suffix.size());
      if (is_driver_name(name)) names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

}  // namespace vise
