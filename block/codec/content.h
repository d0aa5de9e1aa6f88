// What kind of data a cluster holds, as far as that decides how it is best compressed.
#pragma once

#include <cstddef>
#include <span>

namespace vise::codec {

/// By the share of printable ASCII in a sample: under three tenths (tables, compressed or foreign
/// things), under a half (programs), or more (text, sources, what has strings for the most part).
/// Of programs, `code` is what has as many bytes 0xff as machine code does, between small negative
/// numbers, but is not mostly zeros.
enum class Content { random, tables, programs, code, text };

/// Looks at a sixteenth of the bytes, at most 4 KiB. Under 256 bytes nothing is random. Any thread.
Content content_of(std::span<const std::byte> cluster);

/// Whether a slow codec would try in vain: on a machine's file system a fifth of the clusters are
/// such, and deflate takes longer over each than over any other. Costs at most a tenth of what the
/// fastest deflate does; wrongly true for few that would have shrunk by one or two percent.
/// `content` is that of the cluster. `scratch`: as long as what is stored may be; overwritten. Any
/// thread.
bool is_incompressible(Content content, std::span<const std::byte> cluster,
                       std::span<std::byte> scratch);

}  // namespace vise::codec
