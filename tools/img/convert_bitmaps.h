// Taking persistent dirty bitmaps over into another image.
#pragma once

#include "tools/common/output.h"
#include "vise/graph.h"

namespace vise::tools {

enum class BrokenBitmaps { refuse, skip };

/// Throws Error(ENOTSUP) unless the image can hold bitmaps.
void require_bitmap_support(const Node& node);

/// Throws Error(EINVAL) if `source` has an inconsistent bitmap and those are not to be skipped.
void check_bitmaps(Node& source, BrokenBitmaps broken);

/// Throws if copy_bitmaps() could not give all of them to `target`: Error(ENOTSUP), EEXIST for a
/// name that is taken there, EINVAL if the disks differ in size.
void check_bitmap_target(Node& source, Node& target);

/// Gives `target` the persistent bitmaps of `source`, whose sizes must agree. Warns of those it
/// skips.
void copy_bitmaps(const Program& program, Node& source, Node& target);

}  // namespace vise::tools
