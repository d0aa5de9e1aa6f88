// The binary interface of a loadable driver: one C symbol.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vise/driver.h"

namespace vise {

/// Raised whenever a public header changes in a way that breaks compiled plugins.
inline constexpr std::uint32_t plugin_abi_version = 3;

struct PluginInfo {
  std::uint32_t abi_version;  // plugin_abi_version the plugin was compiled with
  std::size_t driver_count;
  const DriverType* drivers;  // `driver_count` of them, alive while the plugin is loaded
};

/// Each plugin, a shared object named "vise-DRIVER.so" in the plugin folder or in
/// VISE_PLUGIN_PATH, exports:  extern "C" const vise::PluginInfo* vise_plugin();
inline constexpr const char* plugin_symbol = "vise_plugin";

}  // namespace vise
