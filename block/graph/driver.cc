// What drivers get for free.
#include "vise/driver.h"

#include <cerrno>

#include "vise/child.h"
#include "vise/error.h"

namespace vise {

Driver::~Driver() = default;

Task<void> Driver::write_zeroes(GuestRange, ZeroFlags) {
  throw Error(ENOTSUP, "The driver cannot write zeros");
  co_return;
}

Task<void> Driver::discard(GuestRange) { co_return; }

Task<void> Driver::truncate(std::uint64_t, TruncateOptions) {
  throw Error(ENOTSUP, "The image format driver does not support resizing");
  co_return;
}

Task<std::optional<EncodedExtent>> Driver::read_encoded(GuestOffset) { co_return std::nullopt; }

Task<bool> Driver::write_encoded(GuestOffset, const EncodedExtent&, WriteFlags) { co_return false; }

Task<DriverInfo> Driver::info() { co_return DriverInfo{}; }

Task<void> Driver::apply_permissions(Permissions) { co_return; }
Task<void> Driver::reopen(bool) { co_return; }
Task<void> Driver::drain() { co_return; }

Permissions Driver::child_permissions(const Child& edge, Permissions parents) const {
  const PermissionSet changes = PermissionSet(Permission::write) | Permission::resize;
  if (edge.role() == EdgeRole::filtered) return parents;
  Permissions needs{.uses = Permission::consistent_read,
                    .shares = Permissions::all().without(changes)};
  const bool writable = !parents.uses.without(Permission::consistent_read).empty();
  if (edge.role() != EdgeRole::backing && writable) needs.uses |= changes;
  return needs;
}

}  // namespace vise
