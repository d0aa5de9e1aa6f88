// A plugin of another time.
#include "vise/plugin.h"

extern "C" const vise::PluginInfo* vise_plugin() {
  static const vise::PluginInfo info = {vise::plugin_abi_version + 41, 0, nullptr};
  return &info;
}
