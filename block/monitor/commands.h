// The groups of commands, to be put into a table; block/commands.cc names them all.
#pragma once

#include "monitor/command.h"

namespace vise {

/// Version, schema, quit, objects.
void add_monitor_commands(CommandTable& commands);
/// Nodes: adding, removing, asking.
void add_node_commands(CommandTable& commands);
/// block-export-add and its relatives.
void add_export_commands(CommandTable& commands);

}  // namespace vise
