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
    if (order != 4) fail("version 2 images have refcounts of 16 bits only");
    if (wanted.lazy_refcounts.value_or(false)) fail("version 2 images have no lazy refcounts");
  }
  if (version >= header_.version) return;
  // Without compressed clusters, how they would be compressed does not matter.
  const std::uint64_t features = header_.incompatible_features & ~incompatible::compression_type;
  if (features != 0) {
    throw Error(ENOTSUP, fmt::format("version 2 images cannot have the features of this one "
                                     "(incompatible features {:#x})",
                                     features));
  }
  if (header_.bitmaps) throw Error(ENOTSUP, "version 2 images cannot hold dirty bitmaps");
}

Task<void> Qcow2::amend(AmendRequest request) {
  const Amendment wanted = Amendment::parse(request.options);
  check_amendment(wanted);
  co_await begin_operation();
  const auto report = [&](double fraction) {
    if (request.on_progress) request.on_progress(fraction);
  };
  report(0);
  if (wanted.version.value_or(header_.version) > header_.version) co_await upgrade();
  if (wanted.refcount_order.value_or(header_.refcount_order) != header_.refcount_order) {
    co_await change_refcount_width(*wanted.refcount_order);
  }
  report(0.5);
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
  if (wanted.version.value_or(header_.version) < header_.version) co_await downgrade();
  if (wanted.size) co_await truncate(*wanted.size, {});
  report(1);
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

Task<void> Qcow2::downgrade() {
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const bool other_codec = header_.compression != Codec::deflate;
  if (other_codec) {
    co_await require_no_entries(header_.l1_entries, header_.l1_offset, {.compressed = true});
  }
  for (const Snapshot& snapshot : table.snapshots) {
    if (snapshot.virtual_size != header_.virtual_size) {
      throw Error(ENOTSUP, fmt::format("snapshot '{}' has a disk of another size, which version 2 "
                                       "images cannot have",
                                       snapshot.name));
    }
    snapshot.check_l1(header_);
    const Forbidden forbidden{.zero = true, .compressed = other_codec};
    co_await require_no_entries(snapshot.l1_entries, snapshot.l1_offset, forbidden)
        .context(fmt::format("snapshot '{}'", snapshot.name));
  }
  co_await drop_l1_entries(divide_up(header_.virtual_size, header_.l2_coverage()));
  co_await expand_zero_entries();
  co_await begin_operation();
  Header header = header_;
  header.version = 2;
  header.incompatible_features &= ~incompatible::compression_type;
  header.compression = Codec::deflate;
  header.compatible_features = 0;
  header.autoclear_features = 0;
  header.unknown_fields.clear();
  co_await write_header(std::move(header));
  geometry_ = Geometry(header_);
}

// The tables of snapshots are not to be changed.
Task<void> Qcow2::require_no_entries(std::uint64_t l1_entries, HostOffset l1_offset,
                                     Forbidden forbidden) {
  Buffer l1(l1_entries * 8);
  co_await read_zero_extended(*file_, l1_offset, l1.span());
  Buffer table(geometry_.cluster_size);
  for (std::uint64_t i = 0; i < l1_entries; ++i) {
    const HostOffset offset(load_be<std::uint64_t>(l1.data() + i * 8) & entry_offset_mask);
    if (offset.bytes() == 0) continue;
    co_await read_zero_extended(*file_, offset, table.span());
    for (std::size_t at = 0; at < table.size(); at += 8) {
      const auto word = load_be<std::uint64_t>(table.data() + at);
      const bool compressed = (word & entry_compressed) != 0;
      if (forbidden.compressed && compressed) {
        throw Error(ENOTSUP,
                    "it has compressed clusters of a type that version 2 images cannot "
                    "have (they know zlib alone)");
      }
      if (forbidden.zero && !compressed && (word & entry_zero) != 0) {
        throw Error(ENOTSUP, "it has zero clusters, which version 2 images cannot have");
      }
    }
  }
}

// Version 2 cannot say "zeros": where nothing is below, unallocated clusters do, else real zeros.
Task<void> Qcow2::expand_zero_entries() {
  const std::uint64_t end = divide_up(header_.virtual_size, geometry_.cluster_size);
  const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
  for (std::uint64_t first = 0; first < end;) {
    const std::uint64_t count = std::min(end - first, per_table - geometry_.l2_index(first));
    if (mapping_.has_table(first)) co_await expand_stretch(first, count);
    co_await commit_if_due();
    first += count;
  }
}

Task<void> Qcow2::expand_stretch(std::uint64_t first, std::uint64_t count) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  const std::vector<Descriptor> old = co_await descriptors(first, count);
  const std::uint64_t below = backing_ ? backing_->size() : 0;
  const Buffer zeroes = Buffer::zeroed(cluster_size);
  for (std::uint64_t i = 0; i < count; ++i) {
    if (old[i].compressed || old[i].zero == 0) continue;
    const GuestOffset offset = geometry_.guest_offset(first + i);
    const std::uint64_t length = std::min(cluster_size, header_.virtual_size - offset.bytes());
    if (offset.bytes() < below) {
      co_await write_allocating(offset, ConstIoVec(zeroes.span().first(length)));
    } else {
      co_await clear({offset, length}, Clearing::discard_fully);
    }
  }
}

// The counts go to new structures behind all else, which count themselves; one write of the header
// switches to them, and the old ones are given back.
Task<void> Qcow2::change_refcount_width(std::uint32_t order) {
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
