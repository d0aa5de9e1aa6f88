#include "format/qcow2/metadata_io.h"

#include <algorithm>
#include <cstdint>

namespace vise::qcow2 {

Task<void> read_zero_extended(Child& file, HostOffset offset, std::span<std::byte> bytes) {
  const std::uint64_t length = file.size();
  const std::uint64_t present =
      offset.bytes() >= length ? 0 : std::min<std::uint64_t>(bytes.size(), length - offset.bytes());
  std::ranges::fill(bytes.subspan(present), std::byte{0});
  if (present > 0) co_await file.read(offset, IoVec(bytes.first(present)));
}

}  // namespace vise::qcow2
