// The arguments that all commands which start jobs have in common.
#pragma once

#include <cstdint>
#include <string>

#include "job/backup.h"
#include "job/job_table.h"
#include "monitor/services.h"

namespace vise {

/// Throws Error(EINVAL) for negative ones.
std::uint64_t speed_argument(std::int64_t speed);

/// The node that commands with a `device` mean. Throws Error(ENOENT).
Node& get_device(Services& services, const std::string& name);

/// Throws Error(EINVAL / EEXIST) for bad ids and speeds.
template <class Arguments>
JobSettings job_settings(Services& services, const Arguments& arguments) {
  JobSettings settings;
  settings.id = arguments.job_id.value_or(std::string());
  services.jobs().require_new_id(settings.id);
  settings.speed = speed_argument(arguments.speed.value_or(0));
  settings.auto_finalize = arguments.auto_finalize.value_or(true);
  settings.auto_dismiss = arguments.auto_dismiss.value_or(true);
  return settings;
}

BackupSettings backup_settings(Services& services, const qapi::BlockdevBackup& arguments);

}  // namespace vise
