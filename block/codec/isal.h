// Raw deflate by libisal, the fastest there is. Callers outside this folder use codec.h.
#pragma once

#include <cstddef>
#include <span>

namespace vise::codec::isal {

/// The length of the stream of `cluster` (at least 16 bytes) put into `stored`, or 0 if there is no
/// room for it. The same bytes on every thread. `level`: 1 or 2. Throws Error ENOMEM.
std::size_t compress(unsigned level, std::span<const std::byte> cluster,
                     std::span<std::byte> stored);

}  // namespace vise::codec::isal
