// Telling clusters that are compressed or encrypted already without a slow codec.
#pragma once

#include <cstddef>
#include <span>

namespace vise::codec {

/// Whether a slow codec would try in vain: on a machine's file system a fifth of the clusters are
/// such, and deflate takes longer over each than over any other. Costs at most a tenth of what the
/// fastest deflate does. Always false for clusters under 256 bytes; wrongly true for few that would
/// have shrunk by one or two percent. `scratch`: as long as what is stored may be; overwritten.
/// Any thread.
bool is_incompressible(std::span<const std::byte> cluster, std::span<std::byte> scratch);

}  // namespace vise::codec
