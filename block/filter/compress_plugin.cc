// compress as a loadable driver.
#include "filter/filters.h"
#include "vise/plugin.h"

extern "C" const vise::PluginInfo* vise_plugin() {
  static const vise::PluginInfo info = {vise::plugin_abi_version, 1, &vise::compress_driver};
  return &info;
}
