#include "format/qcow2/check_in_use.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "format/qcow2/check.h"
#include "format/qcow2/l1_tree.h"
#include "format/qcow2/qcow2.h"
#include "vise/error.h"

namespace vise::qcow2 {

std::uint64_t CheckInUse::corruptions() const {
  const auto explained = std::ranges::count_if(pass.doubts, [this](const CheckPass::Doubt& doubt) {
    return changed.contains(doubt.first) || changed.contains(doubt.last);
  });
  return pass.result.corruptions - static_cast<std::uint64_t>(explained);
}

Task<void> Qcow2::check_metadata() {
  std::exception_ptr failure;
  try {
    co_await check_in_use_->pass.run(CheckPass::Copied::check);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  forget_check();
  std::rethrow_exception(failure);
}

void Qcow2::forget_check() {
  space_.note_changes(nullptr);
  check_in_use_.reset();
}

// Drained, and with no command under way that changes metadata: all changes are known.
Task<void> Qcow2::end_check() {
  const std::unique_ptr<CheckInUse> check = std::move(check_in_use_);
  space_.note_changes(nullptr);
  require_writable();
  const CheckPass& pass = check->pass;
  if (check->corruptions() > 0 || pass.result.check_errors > 0) {
    // Whoever is told that the image is corrupt can rely on it.
    co_await check_standing_still();
    co_return;
  }
  co_await give_back_leaks(*check);
}

Task<void> Qcow2::give_back_leaks(const CheckInUse& check) {
  References leaks;
  bool any = false;
  bool one_is_left = false;
  for (const CountChange& change : check.pass.changes) {
    if (change.stored <= change.references || check.changed.contains(change.cluster)) continue;
    const std::uint64_t times = change.stored - change.references;
    leaks.add(change.cluster,
              static_cast<std::uint32_t>(std::min<std::uint64_t>(times, UINT32_MAX)));
    any = true;
    one_is_left = one_is_left || change.references == 1;
  }
  if (!any) co_return;
  co_await begin_operation();
  if (one_is_left) co_await renew_unshared();
  co_await release(leaks);
  if (one_is_left) co_await refresh_copied();
}

// Leaks go first: flags that only contradict a count that is too high are no corruption.
Task<void> Qcow2::check_standing_still() {
  co_await begin_operation();
  CheckRequest request;
  request.repair = Repair::leaks;
  const CheckResult found = co_await check_image(*file_, header_, std::move(request));
  if (found.corruptions > 0 || found.check_errors > 0) {
    throw Error(EIO, "the image is corrupt, so that nothing was compressed")
        .with_hint("'check' tells more, and may repair it");
  }
  if (found.leaks_fixed > 0) {
    co_await refcounts_.reload();
    space_.forget_packing();
  }
}

}  // namespace vise::qcow2
