// The table of internal snapshots, as info and snapshot print it.
#pragma once

#include <string>

#include "vise/value.h"

namespace vise::tools {

/// "Snapshot list:", the header and a row for each SnapshotInfo dictionary, in local time; each
/// line behind `indent` blanks.
std::string snapshot_list_text(const Value::List& snapshots, unsigned indent);

}  // namespace vise::tools
