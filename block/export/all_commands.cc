// All commands of a daemon.
#include "monitor/commands.h"

namespace vise {

void add_all_commands(CommandTable& commands) {
  add_monitor_commands(commands);
  add_node_commands(commands);
  add_job_commands(commands);
  add_bitmap_commands(commands);
  add_snapshot_commands(commands);
  add_change_commands(commands);
  add_transaction_commands(commands);
  add_export_commands(commands);
  add_nbd_commands(commands);
}

}  // namespace vise
