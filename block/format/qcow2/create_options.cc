#include "format/qcow2/create_options.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cerrno>
#include <string_view>

#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t sector = 512;
constexpr std::uint64_t max_size = INT64_MAX / sector * sector;

// Everything that is not an answer by itself but forbids others.
struct Conflicts {
  bool encryption = false;
  bool data_file = false;
};

// One option after the other out of a dictionary.
class Options {
 public:
  explicit Options(const Value::Dict& options)
      : value_(options), root_(value_, ValueInput::options), dict_(root_) {}

  std::uint64_t size(std::string_view name, std::uint64_t fallback) {
    const Value* value = dict_.find(name);
    return value != nullptr ? root_.member(name, *value).size() : fallback;
  }
  std::int64_t number(std::string_view name, std::int64_t fallback) {
    const Value* value = dict_.find(name);
    return value != nullptr ? root_.member(name, *value).integer() : fallback;
  }
  bool boolean(std::string_view name) {
    const Value* value = dict_.find(name);
    return value != nullptr && root_.member(name, *value).boolean();
  }
  std::string string(std::string_view name) {
    const Value* value = dict_.find(name);
    return value != nullptr ? root_.member(name, *value).string() : std::string();
  }
  // The index in `names`, 0 if the option is absent.
  std::size_t choice(std::string_view name, std::span<const std::string_view> names) {
    const Value* value = dict_.find(name);
    return value != nullptr ? root_.member(name, *value).choice(names) : 0;
  }
  bool given(std::string_view name) { return dict_.find(name) != nullptr; }
  void finish() { dict_.finish(); }

 private:
  Value value_;
  ValueReader root_;
  DictReader dict_;
};

[[noreturn]] void fail(std::string_view text) { throw Error(EINVAL, text); }

std::uint32_t read_cluster_bits(Options& in) {
  const std::uint64_t size = in.size("cluster_size", 65536);
  if (!std::has_single_bit(size) || size < 1u << min_cluster_bits ||
      size > 1u << max_cluster_bits) {
    fail(fmt::format("cluster_size must be a power of two from {} to {}, not {}",
                     1u << min_cluster_bits, 1u << max_cluster_bits, size));
  }
  return static_cast<std::uint32_t>(std::countr_zero(size));
}

std::uint32_t read_refcount_order(Options& in) {
  const std::int64_t bits = in.number("refcount_bits", 16);
  if (bits < 1 || bits > 64 || !std::has_single_bit(static_cast<std::uint64_t>(bits))) {
    fail(fmt::format("refcount_bits must be a power of two from 1 to 64, not {}", bits));
  }
  return static_cast<std::uint32_t>(std::countr_zero(static_cast<std::uint64_t>(bits)));
}

std::uint32_t read_version(Options& in) {
  static constexpr std::array<std::string_view, 4> names = {"1.1", "v3", "0.10", "v2"};
  return in.choice("compat", names) < 2 ? 3 : 2;
}

void check_version_2(const CreateOptions& o) {
  const auto needs_3 = [](std::string_view what) {
    fail(fmt::format("{} needs compat=1.1 (v3) or newer", what));
  };
  if (o.refcount_order != 4) needs_3("refcount_bits other than 16");
  if (o.lazy_refcounts) needs_3("lazy_refcounts");
  if (o.extended_l2) needs_3("extended_l2");
  if (o.compression != Codec::deflate) needs_3("compression_type=zstd");
}

void check_combinations(const CreateOptions& o, const Conflicts& c) {
  if (o.version == 2) {
    check_version_2(o);
    if (c.data_file) fail("data_file needs compat=1.1 (v3) or newer");
  }
  if (o.extended_l2 && o.cluster_bits < min_extended_l2_cluster_bits) {
    fail(fmt::format("extended_l2 needs a cluster_size of at least {}, not {}",
                     1u << min_extended_l2_cluster_bits, 1u << o.cluster_bits));
  }
  // The clusters of a preallocated image hide the backing file, unless subclusters let it through.
  if (o.preallocation != Preallocation::off && !o.backing_file.empty() && !o.extended_l2) {
    fail("preallocation and backing_file go together only with extended_l2");
  }
  if (o.backing_file.empty() && !o.backing_format.empty()) {
    fail("backing_fmt is given without backing_file");
  }
  if (o.backing_file.size() > max_backing_name) {
    fail(fmt::format("backing_file is longer than {} bytes", max_backing_name));
  }
  if (o.backing_format.size() > max_backing_format) {
    fail(fmt::format("backing_fmt is longer than {} bytes", max_backing_format));
  }
  if (o.data_file_raw && !c.data_file) fail("data_file_raw is given without data_file");
  if (o.data_file_raw && !o.backing_file.empty()) {
    fail("data_file_raw and backing_file exclude each other");
  }
  if (c.encryption) {
    throw Error(ENOTSUP,
                "Creating encrypted images is not supported (option encryption, encrypt.*)");
  }
  if (c.data_file && o.data_file.empty()) fail("data_file is empty");
  if (o.data_file.find('\0') != std::string::npos) fail("data_file contains a NUL byte");
}

}  // namespace

CreateOptions CreateOptions::parse(const Value::Dict& options) {
  static constexpr std::array<std::string_view, 2> codecs = {"zlib", "zstd"};
  static constexpr std::array<std::string_view, 4> preallocations = {"off", "metadata", "falloc",
                                                                     "full"};
  Options in(options);
  CreateOptions o;
  Conflicts c;
  c.encryption = in.boolean("encryption");
  for (const CreateOption& option : create_options) {
    if (option.name.starts_with("encrypt.") && in.given(option.name)) c.encryption = true;
  }
  o.cluster_bits = read_cluster_bits(in);
  o.extended_l2 = in.boolean("extended_l2");
  o.preallocation = static_cast<Preallocation>(in.choice("preallocation", preallocations));
  o.compression = in.choice("compression_type", codecs) == 1 ? Codec::zstd : Codec::deflate;
  in.given("size");  // known, but the request says it
  o.version = read_version(in);
  o.backing_file = in.string("backing_file");
  o.backing_format = in.string("backing_fmt");
  c.data_file = in.given("data_file");
  o.data_file = in.string("data_file");
  o.data_file_raw = in.boolean("data_file_raw");
  o.lazy_refcounts = in.boolean("lazy_refcounts");
  o.refcount_order = read_refcount_order(in);
  in.finish();
  check_combinations(o, c);
  // The metadata of a raw data file are complete at all times.
  if (o.data_file_raw && o.preallocation == Preallocation::off) {
    o.preallocation = Preallocation::metadata;
  }
  return o;
}

Header CreateOptions::header(std::uint64_t size) const {
  Header h;
  h.version = version;
  h.cluster_bits = cluster_bits;
  h.refcount_order = refcount_order;
  h.compression = compression;
  if (compression != Codec::deflate) h.incompatible_features |= incompatible::compression_type;
  if (extended_l2) h.incompatible_features |= incompatible::extended_l2;
  if (lazy_refcounts) h.compatible_features |= compatible::lazy_refcounts;
  if (!data_file.empty()) {
    h.incompatible_features |= incompatible::data_file;
    h.data_file_name = data_file;
  }
  if (data_file_raw) h.autoclear_features |= autoclear::raw_data_file;
  h.backing_name = backing_file;
  h.backing_format = backing_format;

  const std::uint64_t largest =
      std::min<std::uint64_t>(max_size, max_l1_bytes / 8 * h.l2_coverage());
  if (size > largest) {
    throw Error(EFBIG, fmt::format("Image size {} is larger than {}, the limit for clusters of {} "
                                   "bytes",
                                   size, largest, h.cluster_size()));
  }
  h.virtual_size = vise::align_up(size, sector);
  h.l1_entries = static_cast<std::uint32_t>(divide_up(h.virtual_size, h.l2_coverage()));
  return h;
}

}  // namespace vise::qcow2
