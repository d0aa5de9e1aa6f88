// Checking and repairing a qcow2 image (qcow2.md 11).
#pragma once

#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/image_operations.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// Checks the image in `file`, and repairs it as `request` says. Works past all caches: the driver
/// has flushed and drained before, and after a repair reads everything again, header included
/// (`header` has changed with it). `header` is as decoded for Purpose::check.
///
/// Throws Error(EIO) where the check breaks off: a part of the metadata that everything depends on
/// cannot be read, or Repair::leaks finds refcounts that only a rebuild mends; EFBIG for files of
/// more clusters than we count.
Task<CheckResult> check_image(Child& file, Header& header, CheckRequest request);

}  // namespace vise::qcow2
