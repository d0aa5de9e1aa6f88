#include "format/qcow2/check.h"

#include <array>
#include <cerrno>
#include <utility>

#include "format/qcow2/check_data.h"
#include "format/qcow2/check_pass.h"
#include "format/qcow2/repair.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

CheckRequest without_repair(const CheckRequest& request) {
  CheckRequest result = request;
  result.repair = Repair::none;
  return result;
}

// A repair looks at everything twice; decoding has its own progress.
CheckRequest with_half_progress(const CheckRequest& request, double start) {
  CheckRequest result = request;
  if (request.on_progress && !request.data) {
    result.on_progress = [report = request.on_progress, start](double fraction) {
      report(start + fraction / 2);
    };
  }
  return result;
}

Task<CheckResult> check_only(Child& file, const Header& header, const CheckRequest& request) {
  CheckPass pass(file, header, request);
  co_await pass.run(CheckPass::Copied::check);
  if (request.data) co_await check_data(file, header, request, pass.l2_tables, pass.result);
  co_return pass.result;
}

// Says why a repair of leaks must not start: it would rely on counts or references known to be
// wrong.
void require_repairable(const CheckPass& pass, const CheckRequest& request) {
  const SnapshotTable& snapshots = pass.snapshots;
  if (pass.incomplete) {
    throw Error(EIO, "Nothing was repaired, since a part of the metadata cannot be read");
  }
  if (request.repair == Repair::all) return;
  if (pass.needs_rebuild) {
    pass.report("ERROR need to rebuild refcount structures");
    throw Error(EIO, "The refcount structures must be rebuilt")
        .with_hint("A repair of everything (-r all) does that");
  }
  if (pass.bitmaps_broken || snapshots.surplus > 0) {
    throw Error(EIO, "Clusters that look leaked belong to damaged bitmaps or snapshots")
        .with_hint("A repair of everything (-r all) gives these up");
  }
}

// An image without errors is neither dirty nor corrupt, whatever it says.
Task<void> clear_dirty_and_corrupt(Child& file, Header& header) {
  const std::uint64_t bits = incompatible::dirty | incompatible::corrupt;
  if ((header.incompatible_features & bits) == 0) co_return;
  const std::uint64_t features = header.incompatible_features & ~bits;
  std::array<std::byte, 8> field;
  store_be(field.data(), features);
  co_await file.flush();
  co_await file.write(HostOffset(field_offset::incompatible_features),
                      ConstIoVec(std::span<const std::byte>(field)));
  co_await file.flush();
  header.incompatible_features = features;
}

struct Fixed {
  std::uint64_t corruptions = 0;
  std::uint64_t leaks = 0;
};

Task<Fixed> repair_once(Child& file, Header& header, const CheckRequest& request) {
  CheckPass pass(file, header, request);
  co_await pass.run(CheckPass::Copied::later);
  require_repairable(pass, request);
  Repairer repairer(file, header, request, pass);
  co_await repairer.run();
  Fixed fixed;
  fixed.corruptions = repairer.corruptions_fixed;
  fixed.leaks = repairer.leaks_fixed;
  co_return fixed;
}

// What replaced damaged structures has left these behind as leaks.
Task<void> free_replaced(Child& file, Header& header, const CheckRequest& request) {
  CheckRequest quiet = request;
  quiet.repair = Repair::leaks;
  quiet.on_finding = nullptr;
  quiet.data = false;
  quiet.on_progress = nullptr;
  co_await repair_once(file, header, quiet);
}

}  // namespace

Task<CheckResult> check_image(Child& file, Header& header, CheckRequest request) {
  if (request.repair == Repair::none) {
    const CheckResult found = co_await check_only(file, header, request);
    co_return found;
  }
  const HostOffset snapshots_before = header.snapshots_offset;
  const CheckRequest first = with_half_progress(request, 0);
  const Fixed fixed = co_await repair_once(file, header, first);
  if (header.snapshots_offset != snapshots_before) {
    co_await free_replaced(file, header, request);
  }
  const CheckRequest second = without_repair(with_half_progress(request, 0.5));
  CheckResult result = co_await check_only(file, header, second);
  result.corruptions_fixed = fixed.corruptions;
  result.leaks_fixed = fixed.leaks;
  if (result.corruptions == 0 && result.check_errors == 0) {
    co_await clear_dirty_and_corrupt(file, header);
  }
  co_return result;
}

}  // namespace vise::qcow2
