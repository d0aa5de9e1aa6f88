// A plugin whose driver is not the one its file is named after.
#include "vise/graph.h"
#include "vise/plugin.h"

namespace {

vise::Task<std::unique_ptr<vise::Driver>> open(vise::OpenContext&) { co_return nullptr; }

constexpr vise::DriverType type = {
    .name = "another", .kind = vise::DriverKind::filter, .open = open};
constexpr vise::PluginInfo info = {vise::plugin_abi_version, 1, &type};

}  // namespace

extern "C" const vise::PluginInfo* vise_plugin() { return &info; }
