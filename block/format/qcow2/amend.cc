// Changing the form of an image in place: version, refcount width, flags. Each change is complete
// and stable before the next one; what can be refused is refused before the first.
#include <array>
#include <bit>
#include <cerrno>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "format/formats.h"
#include "format/qcow2/l1_tree.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/refcount_layout.h"
#include "format/qcow2/refcount_packing.h"
#include "format/qcow2/snapshot_table.h"
#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise {

namespace qcow2 {

namespace {

constexpr CreateOption options[] = {
    {"backing_file", CreateOption::Type::string, "Must be what it is (rebase changes it)"},
    {"backing_fmt", CreateOption::Type::string, "Must be what it is (rebase changes it)"},
    {"compat", CreateOption::Type::string, "Version of the format: v2 (0.10) or v3 (1.1)"},
    {"data_file", CreateOption::Type::string, "File name of the external data file"},
    {"data_file_raw", CreateOption::Type::boolean, "Can only be switched off"},
    {"lazy_refcounts", CreateOption::Type::boolean, "Postpone refcount updates"},
    {"refcount_bits", CreateOption::Type::number, "Width of a reference count, 1 to 64 bits"},
    {"size", CreateOption::Type::size, "Virtual disk size"},
};

[[noreturn]] void fail(std::string_view text) { throw Error(EINVAL, text); }

}  // namespace

/// What is to change.
struct Qcow2::Amendment {
  std::optional<std::uint32_t> version;
  std::optional<std::uint32_t> refcount_order;
  std::optional<bool> lazy_refcounts;
  std::optional<bool> data_file_raw;
  std::optional<std::string> data_file, backing_file, backing_format;
  std::optional<std::uint64_t> size;

  static Amendment parse(const Value::Dict& given) {
    Amendment result;
    const Value value(given);
    const ValueReader root(value, ValueInput::options);
    DictReader dict(root);
    const auto text = [&](std::string_view name) -> std::optional<std::string> {
      const Value* found = dict.find(name);
      if (found == nullptr) return std::nullopt;
      return root.member(name, *found).string();
    };
    const auto flag = [&](std::string_view name) -> std::optional<bool> {
      const Value* found = dict.find(name);
      if (found == nullptr) return std::nullopt;
      return root.member(name, *found).boolean();
    };
    result.backing_file = text("backing_file");
    result.backing_format = text("backing_fmt");
    result.data_file = text("data_file");
    result.data_file_raw = flag("data_file_raw");
    result.lazy_refcounts = flag("lazy_refcounts");
    if (const Value* found = dict.find("compat")) {
      static constexpr std::array<std::string_view, 4> names = {"1.1", "v3", "0.10", "v2"};
      result.version = root.member("compat", *found).choice(names) < 2 ? 3 : 2;
    }
    if (const Value* found = dict.find("refcount_bits")) {
      const std::int64_t bits = root.member("refcount_bits", *found).integer();
      if (bits < 1 || bits > 64 || !std::has_single_bit(static_cast<std::uint64_t>(bits))) {
        fail(fmt::format("refcount_bits must be a power of two from 1 to 64, not {}", bits));
      }
      result.refcount_order =
          static_cast<std::uint32_t>(std::countr_zero(static_cast<std::uint64_t>(bits)));
    }
    if (const Value* found = dict.find("size")) {
      result.size = root.member("size", *found).size();
    }
    dict.finish();
    return result;
  }
};

std::span<const CreateOption> Qcow2::amend_options() const { return options; }

void Qcow2::check_amendment(const Amendment& wanted) const {
  if ((wanted.backing_file && *wanted.backing_file != header_.backing_name) ||
      (wanted.backing_format && *wanted.backing_format != header_.backing_format)) {
    fail("the backing file cannot be amended: rebase changes it");
  }
  if (wanted.data_file && !header_.has_data_file()) fail("the image has no external data file");
  const bool raw = (header_.autoclear_features & autoclear::raw_data_file) != 0;
  if (wanted.data_file_raw.value_or(raw) && !raw) {
    fail("data_file_raw can only be switched off in an image that exists");
  }
  const std::uint32_t version = wanted.version.value_or(header_.version);
  const std::uint32_t order = wanted.refcount_order.value_or(header_.refcount_order);
  if (version < 3) {
    if (header_.snapshot_count > 0 &&
        wanted.size.value_or(header_.virtual_size) != header_.virtual_size) {
      throw Error(ENOTSUP, "a version 2 image with internal snapshots cannot be resized");
    }
    if (order != 4) fail("version 2 images have refcounts of 16 bits only");
    if (wanted.lazy_refcounts.value_or(false)) fail("version 2 images have no lazy refcounts");
  }
}

Task<void> Qcow2::amend(AmendRequest request) {
  const Amendment wanted = Amendment::parse(request.options);
  check_amendment(wanted);
  const std::uint32_t version = wanted.version.value_or(header_.version);
  const bool lowers = version < header_.version;
  const bool widens =
      wanted.refcount_order.value_or(header_.refcount_order) != header_.refcount_order;
  co_await begin_operation();
  if (lowers) co_await check_downgrade();

  double reached = 0;
  const std::function<void(double)> report = [&](double done) {
    const double share = lowers && widens ? 0.5 : 1;
    if (request.on_progress) request.on_progress(reached + done * share);
  };
  report(0);
  if (version > header_.version) co_await upgrade();
  if (widens) {
    co_await change_refcount_width(*wanted.refcount_order, report);
    if (lowers) reached = 0.5;
  }
  co_await change_header(wanted);
  // Before the version goes down: version 2 has no way to hide a longer backing image.
  if (wanted.size) co_await truncate(*wanted.size, {});
  if (lowers) co_await downgrade(report);
  report(1);
}

Task<void> Qcow2::change_header(const Amendment& wanted) {
  Header header = header_;
  if (wanted.lazy_refcounts) {
    header.compatible_features &= ~compatible::lazy_refcounts;
    if (*wanted.lazy_refcounts) header.compatible_features |= compatible::lazy_refcounts;
  }
  if (wanted.data_file_raw == false) header.autoclear_features &= ~autoclear::raw_data_file;
  if (wanted.data_file) header.data_file_name = *wanted.data_file;
  if (wanted.lazy_refcounts || wanted.data_file_raw || wanted.data_file) {
    co_await write_header(std::move(header));
  }
}

// Version 3 wants the size of the disk in every snapshot.
Task<void> Qcow2::upgrade() {
  if (header_.snapshot_count > 0) {
    const SnapshotTable table =
        co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
    References old;
    old.add(HostRange{header_.snapshots_offset, table.length}, geometry_.cluster_bits);
    const HostRange space = co_await write_snapshot_table(table);
    co_await commit_counts();
    co_await switch_snapshot_table(table, space);
    co_await release(old);
  }
  Header header = header_;
  header.version = 3;
  co_await write_header(std::move(header));
  geometry_ = Geometry(header_);
}

// The counts go to new structures behind all else, which count themselves; one write of the header
// switches to them, and the old ones are given back.
Task<void> Qcow2::change_refcount_width(std::uint32_t order,
                                        const std::function<void(double)>& report) {
  Header header = header_;
  header.refcount_order = order;
  const std::uint64_t per_block = header_.refcount_block_entries();
  const std::vector<std::uint64_t> old_table = refcounts_.table();
  std::uint64_t blocks = old_table.size();
  while (blocks > 0 && old_table[blocks - 1] == 0) --blocks;
  ClusterCounts counts(blocks * per_block);
  References old;
  old.add(header_.refcount_table(), geometry_.cluster_bits);
  std::uint64_t start = divide_up(file_->size(), geometry_.cluster_size);
  Buffer block(geometry_.cluster_size);
  for (std::uint64_t index = 0; index < blocks; ++index) {
    report(static_cast<double>(index) / static_cast<double>(blocks));
    if (old_table[index] == 0) continue;
    old.add(old_table[index] >> geometry_.cluster_bits);
    co_await read_zero_extended(*file_, HostOffset(old_table[index]), block.span());
    for (std::uint64_t i = 0; i < per_block; ++i) {
      const std::uint64_t count = load_refcount(block.data(), header_.refcount_order, i);
      if (count == 0) continue;
      const std::uint64_t cluster = index * per_block + i;
      if (count > header.refcount_max()) {
        throw Error(EINVAL, fmt::format("host cluster {} has {} references, too many for refcounts "
                                        "of {} bits",
                                        cluster, count, header.refcount_bits()));
      }
      counts.set(cluster, count);
      start = std::max(start, cluster + 1);
    }
  }
  const NewStructures fresh = plan_structures(header, counts, start, 0);
  if (file_->size() < fresh.end() << geometry_.cluster_bits) {
    co_await file_->truncate(fresh.end() << geometry_.cluster_bits);
  }
  co_await write_structures(*file_, header, counts, fresh);
  header.refcount_table_offset = HostOffset(fresh.table() << geometry_.cluster_bits);
  header.refcount_table_clusters = static_cast<std::uint32_t>(fresh.table_clusters);
  co_await write_header(std::move(header));
  co_await refcounts_.reload();
  space_.forget_packing();
  co_await release(old);
}

}  // namespace qcow2

std::span<const CreateOption> amend_options_of(std::string_view format) {
  if (format == "qcow2") return qcow2::options;
  return {};
}

}  // namespace vise
