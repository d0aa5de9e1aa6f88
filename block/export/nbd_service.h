// The NBD server of a program with monitors: at most one, with the exports of the export table.
#pragma once

#include "export/export.h"

namespace vise {

extern const ExportType nbd_export_type;

/// Throws Error: EBUSY if it runs, what is wrong with the options, what listening throws.
Task<void> start_nbd_server(Services& services, qapi::NbdServerOptions options);
/// Ends it with its exports; nothing if it does not run.
Task<void> stop_nbd_server(Services& services);

}  // namespace vise
