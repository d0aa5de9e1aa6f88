// backup: copies a node as it is at one instant to another one, while it is written to.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "job/job_table.h"
#include "vise/graph.h"

namespace vise {

struct BackupSettings {
  JobSettings job;
  Node* device = nullptr;
  Node* target = nullptr;
  qapi::MirrorSyncMode sync = qapi::MirrorSyncMode::full;
  std::optional<std::string> bitmap;
  std::optional<qapi::BitmapSyncMode> bitmap_mode;
  bool compress = false;
  bool discard_source = false;     // what has been copied
  unsigned most_in_flight = 8;     // chunks
  std::uint64_t most_at_once = 0;  // bytes of a chunk; 0: as it is best
  std::uint64_t least_unit = 0;    // bytes that are copied together, a power of two; 0: as needed
  std::optional<std::string> filter_node_name;
};

/// Makes the job, not started and not in the table. From here on the content of this instant is
/// kept for it. Throws Error, with nothing changed.
Task<std::shared_ptr<Job>> make_backup_job(JobTable& jobs, BackupSettings settings);

}  // namespace vise
