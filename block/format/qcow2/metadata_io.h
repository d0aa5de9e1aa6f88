// Reading and writing metadata past all caches: for create, check and info.
#pragma once

#include <cstddef>
#include <span>

#include "vise/child.h"
#include "vise/task.h"
#include "vise/types.h"

namespace vise::qcow2 {

/// Fills all of `bytes`; what lies beyond the end of the file reads as zeros (qcow2.md 2.1).
Task<void> read_zero_extended(Child& file, HostOffset offset, std::span<std::byte> bytes);

}  // namespace vise::qcow2
