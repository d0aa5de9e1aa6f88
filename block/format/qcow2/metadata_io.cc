#include "format/qcow2/metadata_io.h"

#include <algorithm>
#include <cstdint>
#include <exception>

#include "vise/error.h"

namespace vise::qcow2 {

Task<void> read_zero_extended(Child& file, HostOffset offset, std::span<std::byte> bytes) {
  const std::uint64_t length = file.size();
  const std::uint64_t present =
      offset.bytes() >= length ? 0 : std::min<std::uint64_t>(bytes.size(), length - offset.bytes());
  std::ranges::fill(bytes.subspan(present), std::byte{0});
  if (present > 0) co_await file.read(offset, IoVec(bytes.first(present)));
}

Task<void> replace_stable(Child& file, HostOffset offset, std::span<const std::byte> before,
                          std::span<const std::byte> after, bool& unknown) {
  std::exception_ptr failure;
  try {
    co_await file.write(offset, ConstIoVec(after));
    co_await file.flush();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  unknown = true;
  try {
    co_await file.write(offset, ConstIoVec(before));
    co_await file.flush();
    unknown = false;
  } catch (const Error&) {
    // The first failure is the one to report.
  }
  std::rethrow_exception(failure);
}

}  // namespace vise::qcow2
