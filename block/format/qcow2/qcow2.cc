// Opening, closing and describing a qcow2 node.
#include "format/qcow2/qcow2.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <climits>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

#include "format/qcow2/check_in_use.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/snapshot_table.h"
#include "util/driver_options.h"
#include "util/heap.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t first_read = 64u << 10;  // bytes; holds the header of most images

Task<Header> read_header(Child& file, Header::Purpose purpose) {
  Buffer start(std::min(file.size(), first_read));
  co_await read_padded(file, HostOffset(0), start.span());
  // The cluster size is at offset 20; decode() checks it, this only decides how much to read.
  if (start.size() >= 24) {
    const auto bits = load_be<std::uint32_t>(start.data() + 20);
    if (bits > 16 && bits <= 21 && file.size() > start.size()) {
      Buffer more(std::min(file.size(), std::uint64_t{1} << bits));
      co_await read_padded(file, HostOffset(0), more.span());
      start = std::move(more);
    }
  }
  co_return Header::decode(start.span(), purpose);
}

bool is_for_io(OpenPurpose purpose) {
  return purpose == OpenPurpose::io || purpose == OpenPurpose::make;
}

Header::Purpose header_purpose(OpenPurpose purpose) {
  if (purpose == OpenPurpose::check) return Header::Purpose::check;
  return purpose == OpenPurpose::make ? Header::Purpose::make : Header::Purpose::normal;
}

// How many clusters are decoded before a sequential reader asks for them: enough for the workers, a
// small part of the cache.
std::uint64_t clusters_ahead(const Geometry& geometry, const Settings& settings) {
  constexpr std::uint64_t most_bytes = 512u << 10;
  const std::uint64_t bytes = std::min(most_bytes, settings.decoded_cache_size / 8);
  return std::clamp<std::uint64_t>(bytes >> geometry.cluster_bits, 1, 8);
}

}  // namespace

int probe(std::span<const std::byte> head) {
  constexpr std::uint32_t magic = 0x514649fb;
  if (head.size() < 8 || load_be<std::uint32_t>(head.data()) != magic) return 0;
  return load_be<std::uint32_t>(head.data() + 4) >= 2 ? 100 : 0;
}

Qcow2::Qcow2(Node& node, Header header, const Settings& settings, std::unique_ptr<Child> file,
             bool read_only)
    : node_(node),
      context_(node.graph().context()),
      header_(std::move(header)),
      geometry_(header_),
      settings_(settings),
      overlap_checks_wanted_(settings.overlap_checks),
      file_(std::move(file)),
      read_only_(read_only),
      guard_(header_, settings.overlap_checks),
      refcounts_(header_, *file_, settings.refcount_cache_size, guard_, stopped_),
      space_(geometry_, refcounts_, *file_, flights_, rules_, guard_),
      mapping_(header_, geometry_, *file_, space_, settings.l2_slice_size, settings.l2_cache_size,
               guard_),
      hole_scan_(geometry_, *file_, mapping_, refcounts_, space_, flights_, context_.loop()),
      packer_(*file_),
      decoded_(settings.decoded_cache_size),
      read_ahead_(geometry_.cluster_bits, clusters_ahead(geometry_, settings)) {
  use(settings);
  space_.on_freed = [this](HostRange range) {
    mapping_.cache().forget(range);
    decoded_.forget(range);
    packer_.forget(range);
  };
  guard_.on_contradiction = [this](const Error& error) {
    found_corrupt(error.message(), std::nullopt);
  };
  guard_.refuse = [this](Metadata kind, HostRange range) { return refuse_write(kind, range); };
  tickets_.on_change = [this] {
    if (!tickets_.next_is_appending()) packer_.send();
  };
}

Qcow2::~Qcow2() { assert(!file_ && "close() the image before it goes"); }

Task<std::unique_ptr<Driver>> Qcow2::open(OpenContext& context) {
  const NodeOptions& node = context.node_options();
  std::unique_ptr<Child> file = co_await context.open_child("file", EdgeRole::storage);
  std::unique_ptr<Qcow2> image;
  std::exception_ptr failure;
  try {
    Header header = co_await read_header(*file, header_purpose(node.purpose));
    if (header.crypt_method != 0 && is_for_io(node.purpose)) {
      throw Error(ENOTSUP, header.crypt_method == 1
                               ? "the image is encrypted (AES), which is not supported"
                               : "the image is encrypted (LUKS), which is not supported");
    }
    const bool corrupt = (header.incompatible_features & incompatible::corrupt) != 0;
    if (corrupt && !node.read_only && is_for_io(node.purpose)) {
      throw Error(EACCES,
                  "the image is marked corrupt and can only be opened read-only until it "
                  "has been repaired");
    }
    const Settings settings = read_settings(context, header);
    image.reset(
        new Qcow2(context.node(), std::move(header), settings, std::move(file), node.read_only));
    co_await image->open_children(context);
    co_await image->load(node.purpose);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    if (image) {
      co_await image->release_children();
    } else if (file) {
      co_await file->detach();
    }
    std::rethrow_exception(failure);
  }
  co_return image;
}

// Unlike backing images, relative to the working directory, as QEMU has it: written out unless that
// is where the image lies.
std::string Qcow2::data_file_path() const {
  if (header_.data_file_name.empty()) return {};
  namespace fs = std::filesystem;
  const fs::path folder = fs::absolute(file_->node().protocol_filename()).parent_path();
  std::error_code unknown;
  if (fs::equivalent(folder, fs::current_path(), unknown)) return header_.data_file_name;
  return fs::absolute(header_.data_file_name);
}

Task<void> Qcow2::open_children(OpenContext& context) {
  const bool io = is_for_io(context.node_options().purpose);
  if (header_.has_data_file() && io) {
    OpenRequest request;
    request.filename = data_file_path();
    request.format = "file";
    std::unique_ptr<Child> child =
        co_await context.open_child("data-file", EdgeRole::data_file, std::move(request));
    data_file_ = std::move(child);
  }
  const Value* chosen = context.options().find("backing");
  const bool none = chosen != nullptr &&
                    (chosen->is_null() || (chosen->is_string() && chosen->as_string().empty()));
  if (none) context.options().erase("backing");
  const bool wanted = chosen != nullptr ? !none : !header_.backing_name.empty();
  if (wanted && context.open_backing()) {
    OpenRequest request;
    request.filename = header_.backing_name;
    request.format = header_.backing_format;
    std::unique_ptr<Child> child =
        co_await context.open_child("backing", EdgeRole::backing, std::move(request));
    backing_ = std::move(child);
  }
}

Task<void> Qcow2::load(OpenPurpose purpose) {
  if (purpose == OpenPurpose::check) co_return;  // looks at the disk itself
  co_await mapping_.load().context("L1 table");
  co_await refcounts_.load().context("refcount table");
  if (is_for_io(purpose)) co_await load_bitmaps().context("dirty bitmaps");
  if (read_only_ || !is_for_io(purpose)) co_return;
  co_await prepare_for_writing();
}

// What a writer owes the image before it changes anything.
Task<void> Qcow2::prepare_for_writing() {
  if ((header_.incompatible_features & incompatible::dirty) != 0) {
    co_await repair_dirty().context("repairing the image, which was not closed cleanly");
  }
  const SnapshotTable snapshots =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::tolerant);
  header_.check_writable(snapshots.length);
  co_await guard_snapshots(snapshots);
  co_await require_counted_tables();
  constexpr std::uint64_t known = autoclear::bitmaps | autoclear::raw_data_file;
  if ((header_.autoclear_features & ~known) != 0) {
    co_await write_autoclear(header_.autoclear_features & known);
  }
  co_await claim_bitmaps().context("dirty bitmaps");
}

Task<void> Qcow2::write_autoclear(std::uint64_t features) {
  Buffer field(8);
  store_be(field.data(), features);
  co_await file_->write(HostOffset(88), ConstIoVec(field.span()));
  co_await file_->flush();
  header_.autoclear_features = features;
}

// Only the field: the name of the bit may stay in the feature name table, where it does no harm, so
// that one write of 8 bytes decides, which no power failure can tear.
Task<void> Qcow2::clear_incomplete() {
  if (!is_complete_ || (header_.incompatible_features & incompatible::incomplete) == 0) co_return;
  const std::uint64_t features = header_.incompatible_features & ~incompatible::incomplete;
  Buffer field(8);
  store_be(field.data(), features);
  co_await file_->write(HostOffset(field_offset::incompatible_features), ConstIoVec(field.span()));
  co_await file_->flush();
  header_.incompatible_features = features;
}

Limits Qcow2::limits() const {
  Limits limits;
  limits.cluster_size = geometry_.cluster_size;
  limits.zero_alignment = geometry_.cluster_size;
  limits.discard_alignment = geometry_.cluster_size;
  limits.can_zero = true;
  limits.can_discard = true;
  limits.can_compress = !geometry_.data_file;
  limits.codec = header_.compression;
  return limits;
}

Task<void> Qcow2::reopen(bool read_only) {
  if (read_only == read_only_) co_return;
  if (stopped_) {
    if (!read_only) require_running();
    co_await packer_.idle();
    co_await marking_.join();
    read_only_ = true;
    co_return;
  }
  if (read_only) {
    co_await settle();
    // If storing them fails, the image may offer bitmaps that would miss what is written later.
    read_only_ = true;
    co_await finish_writing();
    co_return;
  }
  read_only_ = false;
  std::exception_ptr failure;
  try {
    co_await prepare_for_writing();
  } catch (...) {
    failure = std::current_exception();
    read_only_ = true;
  }
  if (failure) std::rethrow_exception(failure);
}

// What goes on in the background ends.
Task<void> Qcow2::drain() {
  co_await marking_.join();
  co_await hole_scan_.stop();
  co_await decoding_ahead_.join();
}

// Everything to the disk, freed space included; nothing is in flight.
Task<void> Qcow2::settle() {
  co_await packer_.idle();
  co_await commit();
  co_await space_.reclaim();  // the request that freed it was still in flight at the commit
  while (refcounts_.is_dirty()) {
    co_await space_.reclaim();
    co_await commit_counts();
  }
}

Task<void> Qcow2::finish_writing() {
  co_await settle();
  co_await store_bitmaps().context("Storing the dirty bitmaps");
  co_await settle();
  co_await clear_incomplete();
}

void Qcow2::drop_unused_tables() {
  constexpr std::uint64_t worth_a_trim = 1u << 20;  // bytes
  const std::uint64_t tables = mapping_.cache().drop_unused();
  const std::uint64_t counts = refcounts_.cache().drop_unused();
  if (tables + counts >= worth_a_trim) trim_heap();
}

Task<void> Qcow2::release_children() {
  co_await marking_.join();
  cleaner_.reset();
  if (backing_) co_await backing_->detach();
  if (data_file_) co_await data_file_->detach();
  co_await file_->detach();
  backing_.reset();
  data_file_.reset();
  file_.reset();
}

Task<void> Qcow2::close() {
  co_await drain();
  std::exception_ptr failure;
  try {
    if (stopped_) {
      co_await packer_.idle();
    } else if (!read_only_) {
      co_await finish_writing();
    }
  } catch (...) {
    failure = std::current_exception();
  }
  co_await release_children();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise::qcow2
