// The creation options of qcow2: what `create -o` and `measure -o` know, and what goes together.
#pragma once

#include <cstdint>
#include <string>

#include "format/qcow2/header.h"
#include "vise/driver.h"
#include "vise/value.h"

namespace vise::qcow2 {

/// In the order of the "Formatting" line.
inline constexpr CreateOption create_options[] = {
    {"encryption", CreateOption::Type::boolean, "Encrypt the image (not supported)"},
    {"encrypt.format", CreateOption::Type::string, "Encryption format (not supported)"},
    {"encrypt.key-secret", CreateOption::Type::string, "ID of the secret with the passphrase"},
    {"encrypt.cipher-alg", CreateOption::Type::string, "Name of the encryption cipher"},
    {"encrypt.cipher-mode", CreateOption::Type::string, "Name of the cipher mode"},
    {"encrypt.ivgen-alg", CreateOption::Type::string, "Name of the IV generator"},
    {"encrypt.ivgen-hash-alg", CreateOption::Type::string, "Name of the IV generator's hash"},
    {"encrypt.hash-alg", CreateOption::Type::string, "Name of the encryption's hash"},
    {"encrypt.iter-time", CreateOption::Type::number, "Time for the key derivation (ms)"},
    {"cluster_size", CreateOption::Type::size, "Cluster size, a power of two from 512 to 2M",
     "65536"},
    {"extended_l2", CreateOption::Type::boolean, "Extended L2 entries (subclusters)", "off"},
    {"preallocation", CreateOption::Type::string, "off, metadata, falloc or full"},
    {"compression_type", CreateOption::Type::string, "Codec of compressed clusters: zlib or zstd",
     "zlib"},
    {"size", CreateOption::Type::size, "Virtual disk size"},
    {"compat", CreateOption::Type::string, "Version of the format: v2 (0.10) or v3 (1.1)"},
    {"backing_file", CreateOption::Type::string, "File name of the backing image"},
    {"backing_fmt", CreateOption::Type::string, "Format of the backing image"},
    {"data_file", CreateOption::Type::string, "File name of an external data file"},
    {"data_file_raw", CreateOption::Type::boolean, "The data file stays a raw image"},
    {"lazy_refcounts", CreateOption::Type::boolean, "Postpone refcount updates", "off"},
    {"refcount_bits", CreateOption::Type::number, "Width of a reference count, 1 to 64 bits", "16"},
};

/// The creation options, read and found to go together.
struct CreateOptions {
  std::uint32_t version = 3;
  std::uint32_t cluster_bits = 16;
  std::uint32_t refcount_order = 4;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  Codec compression = Codec::deflate;
  Preallocation preallocation = Preallocation::off;
  std::string backing_file;    // empty: none
  std::string backing_format;  // empty: not stored
  std::string data_file;       // empty: none
  bool data_file_raw = false;

  /// `options` by name, values as typed or JSON; "size" is ignored. Throws Error(EINVAL) that names
  /// the option for unknown ones, bad values and those that contradict one another, ENOTSUP for
  /// encryption.
  static CreateOptions parse(const Value::Dict& options);

  /// The header of an image of `size` bytes (rounded up to 512) with everything set but the places
  /// of the tables. Throws Error(EFBIG) if no L1 table can cover that size.
  Header header(std::uint64_t size) const;
};

}  // namespace vise::qcow2
