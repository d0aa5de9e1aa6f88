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

/// Overwrites `before`, which lies at `offset` and is stable, by `after` (of the same length) and
/// makes that stable. If that fails, puts `before` back and throws the first failure. `unknown` is
/// true from the failure on until it is back, for good if that fails too: the disk may have either,
/// and nothing may be written that relies on one of them.
Task<void> replace_stable(Child& file, HostOffset offset, std::span<const std::byte> before,
                          std::span<const std::byte> after, bool& unknown);

}  // namespace vise::qcow2
