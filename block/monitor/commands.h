// The groups of commands, to be put into a table.
#pragma once

#include "monitor/command.h"

namespace vise {

/// Version, schema, quit, objects.
void add_monitor_commands(CommandTable& commands);
/// Nodes: adding, removing, asking.
void add_node_commands(CommandTable& commands);
/// Stream, backup, create; verbs.
void add_job_commands(CommandTable& commands);
/// Dirty bitmaps.
void add_bitmap_commands(CommandTable& commands);
/// Overlays and internal snapshots.
void add_snapshot_commands(CommandTable& commands);
/// Size, backing file name, threshold.
void add_change_commands(CommandTable& commands);
/// Several changes at once.
void add_transaction_commands(CommandTable& commands);
/// block-export-add and its relatives.
void add_export_commands(CommandTable& commands);
/// nbd-server-start and its relatives.
void add_nbd_commands(CommandTable& commands);

/// All of these; block/export/all_commands.cc, since the last ones are above the monitor.
void add_all_commands(CommandTable& commands);

}  // namespace vise
