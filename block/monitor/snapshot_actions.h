// What the commands on snapshots do, for commands and transactions alike.
#pragma once

#include <memory>

#include "monitor/action.h"
#include "monitor/services.h"

namespace vise {

std::unique_ptr<Action> snapshot_action(Services& services, qapi::BlockdevSnapshot snapshot);
std::unique_ptr<Action> snapshot_sync_action(Services& services,
                                             qapi::BlockdevSnapshotSync snapshot);
std::unique_ptr<Action> snapshot_internal_action(Services& services,
                                                 qapi::BlockdevSnapshotInternal snapshot);

}  // namespace vise
