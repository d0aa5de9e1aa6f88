// Options that may change while the image is open: reading them, and going by them.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <climits>
#include <variant>

#include <fmt/format.h>

#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "util/driver_options.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t default_l2_slice_size = 16u << 10;   // bytes
constexpr std::uint64_t default_cache_clean_interval = 600;  // seconds
// Fewer cached slices than one request touches would only make it read them again and again.
constexpr std::uint64_t smallest_cache = 64u << 10;  // bytes

// What needs no reading from the disk for each write is the default; `all` looks at the L2 tables
// of the snapshots too, once.
MetadataSet overlap_checks(qapi::Qcow2OverlapCheckMode mode) {
  const MetadataSet constant = MetadataSet(Metadata::main_header) | Metadata::refcount_table |
                               Metadata::snapshot_table | Metadata::bitmap_directory;
  const MetadataSet cached = constant | Metadata::active_l1 | Metadata::active_l2 |
                             Metadata::refcount_block | Metadata::inactive_l1;
  switch (mode) {
    case qapi::Qcow2OverlapCheckMode::none:
      return {};
    case qapi::Qcow2OverlapCheckMode::constant:
      return constant;
    case qapi::Qcow2OverlapCheckMode::cached:
      return cached;
    case qapi::Qcow2OverlapCheckMode::all:
      return cached | Metadata::inactive_l2;
  }
  return cached;
}

// A template, of which single checks are switched on or off.
MetadataSet overlap_checks(const std::optional<qapi::Qcow2OverlapChecks>& option) {
  using Mode = qapi::Qcow2OverlapCheckMode;
  if (!option) return overlap_checks(Mode::cached);
  if (const Mode* mode = std::get_if<Mode>(&option->value)) return overlap_checks(*mode);
  const auto& flags = std::get<qapi::Qcow2OverlapCheckFlags>(option->value);
  MetadataSet result = overlap_checks(flags.template_.value_or(Mode::cached));
  const auto apply = [&result](const std::optional<bool>& flag, Metadata kind) {
    if (flag) result = *flag ? result | kind : result.without(kind);
  };
  apply(flags.main_header, Metadata::main_header);
  apply(flags.active_l1, Metadata::active_l1);
  apply(flags.active_l2, Metadata::active_l2);
  apply(flags.refcount_table, Metadata::refcount_table);
  apply(flags.refcount_block, Metadata::refcount_block);
  apply(flags.snapshot_table, Metadata::snapshot_table);
  apply(flags.inactive_l1, Metadata::inactive_l1);
  apply(flags.inactive_l2, Metadata::inactive_l2);
  apply(flags.bitmap_directory, Metadata::bitmap_directory);
  return result;
}

void check_slice_size(const Settings& settings, const Header& header) {
  const std::uint64_t size = settings.l2_slice_size;
  if (size < 512 || size > header.cluster_size() || !std::has_single_bit(size)) {
    throw Error(EINVAL,
                fmt::format("l2-cache-entry-size is {}, but must be a power of two from 512 "
                            "to the cluster size, {}",
                            size, header.cluster_size()));
  }
}

}  // namespace

Settings read_settings(OpenContext& context, const Header& header) {
  const auto options = read_options<qapi::BlockdevOptionsQcow2>(context);
  const auto total = options.cache_size;
  const auto l2 = options.l2_cache_size;
  const auto counts = options.refcount_cache_size;
  if (total && l2 && counts) {
    throw Error(EINVAL,
                "cache-size, l2-cache-size and refcount-cache-size cannot be given together: "
                "two of them say what the third is");
  }
  const auto check_part = [&](std::string_view name, const std::optional<std::uint64_t>& part) {
    if (!total || !part || *part <= *total) return;
    throw Error(EINVAL,
                fmt::format("{} is {}, but may be 0 to cache-size, {}", name, *part, *total));
  };
  check_part("l2-cache-size", l2);
  check_part("refcount-cache-size", counts);
  Settings settings;
  if (counts) settings.refcount_cache_size = *counts;
  if (l2) {
    settings.l2_cache_size = *l2;
    if (total) settings.refcount_cache_size = *total - *l2;
  } else if (total) {
    if (!counts) settings.refcount_cache_size = std::min(settings.refcount_cache_size, *total / 4);
    settings.l2_cache_size = *total - settings.refcount_cache_size;
  }
  settings.l2_cache_size = std::max(settings.l2_cache_size, smallest_cache);
  settings.refcount_cache_size = std::max(settings.refcount_cache_size, smallest_cache);
  settings.l2_slice_size =
      options.l2_cache_entry_size.value_or(std::min(default_l2_slice_size, header.cluster_size()));
  settings.pass_discard_request =
      options.pass_discard_request.value_or(context.node_options().discard_unmap);
  settings.pass_discard_snapshot = options.pass_discard_snapshot.value_or(true);
  settings.pass_discard_other = options.pass_discard_other.value_or(false);
  settings.discard_no_unref = options.discard_no_unref.value_or(false);
  settings.cache_clean_interval =
      options.cache_clean_interval.value_or(default_cache_clean_interval);
  if (settings.cache_clean_interval > UINT_MAX) {
    throw Error(EINVAL, fmt::format("cache-clean-interval is {}, but at most {} seconds",
                                    settings.cache_clean_interval, UINT_MAX));
  }
  settings.overlap_checks = overlap_checks(options.overlap_check);
  check_slice_size(settings, header);
  return settings;
}

// What does not come from the settings alone; at first, and after a change.
void Qcow2::use(const Settings& settings) {
  settings_ = settings;
  overlap_checks_wanted_ = settings.overlap_checks;
  space_.discards_on_request = settings.pass_discard_request;
  space_.discards_on_overwrite = settings.pass_discard_other;
  guard_.set_checked(settings.overlap_checks);
  mapping_.cache().set_capacity(settings.l2_cache_size);
  refcounts_.cache().set_capacity(settings.refcount_cache_size);
  if (mapping_.cache().slice_size() != settings.l2_slice_size) {
    mapping_.cache().set_slice_size(settings.l2_slice_size);
  }
  cleaner_.reset();
  if (settings.cache_clean_interval == 0) return;
  cleaner_ = std::make_unique<Periodic>(context_.loop(),
                                        std::chrono::seconds(settings.cache_clean_interval),
                                        [this] { drop_unused_tables(); });
}

std::span<const std::string_view> Qcow2::changeable_options() const {
  static constexpr std::string_view names[] = {
      "lazy-refcounts",        "overlap-check",      "l2-cache-size",        "l2-cache-entry-size",
      "refcount-cache-size",   "cache-size",         "cache-clean-interval", "pass-discard-request",
      "pass-discard-snapshot", "pass-discard-other", "discard-no-unref"};
  return names;
}

Task<std::function<void()>> Qcow2::prepare_reopen(OpenContext& context) {
  const Settings settings = read_settings(context, header_);
  // Slices of another size take the place of clean ones only.
  if (settings.l2_slice_size != settings_.l2_slice_size && stopped_) require_running();
  if (!read_only_ && !stopped_) co_await settle();
  // Both, as the others may still refuse: then this node goes on with what it has.
  overlap_checks_wanted_ = settings_.overlap_checks | settings.overlap_checks;
  const bool new_check =
      settings.overlap_checks.has(Metadata::inactive_l2) && !guard_.checks(Metadata::inactive_l2);
  if (new_check && !read_only_) {
    const SnapshotTable snapshots =
        co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::tolerant);
    co_await guard_snapshots(snapshots);
  }
  co_return [this, settings] { use(settings); };
}

}  // namespace vise::qcow2
