// The qcow2 images that the crash tests run on.
#pragma once

#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "crash/rig.h"

namespace vise::crash {

inline void PrintTo(const Config& config, std::ostream* out) {  // NOLINT: googletest's name
  *out << config.name;
}

/// A Config by the options that matter, named after them.
inline Config qcow2_config(std::uint64_t cluster_size, const std::string& compression,
                           const std::string& compress_mode = {}, unsigned refcount_bits = 16) {
  Config config;
  config.cluster_size = cluster_size;
  config.create_options.set("compression_type", compression);
  config.create_options.set("refcount_bits", refcount_bits);
  config.compress_mode = compress_mode;
  config.name = "qcow2_" + std::to_string(cluster_size) + "_" + compression;
  if (refcount_bits != 16) config.name += "_refcount" + std::to_string(refcount_bits);
  if (!compress_mode.empty()) {
    config.name += compress_mode == "all-writes" ? "_all_writes" : "_new_writes";
  }
  return config;
}

inline std::vector<Config> qcow2_configs() {
  std::vector<Config> configs = {
      qcow2_config(512, "zlib"),
      qcow2_config(4096, "zlib"),
      qcow2_config(4096, "zstd"),
      qcow2_config(65536, "zstd"),
      qcow2_config(512, "zlib", "", 1),
      qcow2_config(1024, "zstd", "", 2),
      qcow2_config(4096, "zlib", "new-writes"),
      qcow2_config(4096, "zstd", "all-writes"),
      qcow2_config(1024, "zlib", "all-writes"),
  };
  Config direct = qcow2_config(4096, "zlib");  // as on a file opened with cache.direct
  direct.name += "_direct";
  direct.disk_alignment = 512;
  configs.push_back(direct);
  Config direct_filter = qcow2_config(16384, "zstd", "all-writes");
  direct_filter.name += "_direct4096";
  direct_filter.disk_alignment = 4096;
  configs.push_back(direct_filter);
  Config version2 = qcow2_config(1024, "zlib");  // has no zero flag
  version2.name = "qcow2_1024_version2";
  version2.create_options.set("compat", "0.10");
  configs.push_back(version2);
  Config subclusters = qcow2_config(16384, "zlib");
  subclusters.name = "qcow2_16384_extended_l2";
  subclusters.create_options.set("extended_l2", true);
  configs.push_back(subclusters);
  return configs;
}

inline std::string config_name(const testing::TestParamInfo<Config>& test) {
  return test.param.name;
}

}  // namespace vise::crash
