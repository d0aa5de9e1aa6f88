// How small and how fast each compression level is over a real file:
//   codec_levels FILE [CLUSTER_SIZE [HIGHEST_LEVEL]]
// Clusters of zeros are left out, clusters that do not shrink count as they are. The rows "QEMU"
// are what qemu-img would do, and what the default levels in block/codec/ are measured against.
#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "codec/codec.h"
#include "vise/io_vec.h"

namespace {

using vise::Codec;
using Cluster = std::vector<std::byte>;
using Encoder = std::function<std::size_t(std::span<const std::byte>, std::span<std::byte>)>;

std::vector<Cluster> read_clusters(const char* name, std::size_t cluster_size) {
  std::ifstream file(name, std::ios::binary);
  std::vector<Cluster> clusters;
  Cluster cluster(cluster_size);
  while (file.read(reinterpret_cast<char*>(cluster.data()),
                   static_cast<std::streamsize>(cluster_size))) {
    if (!vise::is_zero(std::span<const std::byte>(cluster))) clusters.push_back(cluster);
  }
  return clusters;
}

/// zlib as QEMU uses it: level 6, window 4 KiB, one stream for each cluster.
std::size_t qemu_deflate(std::span<const std::byte> cluster, std::span<std::byte> stored) {
  z_stream stream = {};
  deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(cluster.data()));
  stream.avail_in = static_cast<uInt>(cluster.size());
  stream.next_out = reinterpret_cast<Bytef*>(stored.data());
  stream.avail_out = static_cast<uInt>(stored.size());
  const bool fits = deflate(&stream, Z_FINISH) == Z_STREAM_END;
  const std::size_t length = stored.size() - stream.avail_out;
  deflateEnd(&stream);
  return fits ? length : 0;
}

std::size_t qemu_zstd(std::span<const std::byte> cluster, std::span<std::byte> stored) {
  static ZSTD_CCtx* context = ZSTD_createCCtx();
  const std::size_t length =
      ZSTD_compressCCtx(context, stored.data(), stored.size(), cluster.data(), cluster.size(), 3);
  return ZSTD_isError(length) != 0 ? 0 : length;
}

/// Processor time, so that what else the machine does matters little.
double seconds_since(std::clock_t start) {
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

/// Prints one row; gives the stored bytes. `reference` = 0: this row is the reference.
std::uint64_t measure(const std::string& name, const std::vector<Cluster>& clusters,
                      std::uint64_t reference, const Encoder& encode, const Codec codec) {
  const std::size_t cluster_size = clusters[0].size();
  std::vector<std::vector<std::byte>> stored(clusters.size());
  std::vector<std::byte> buffer(cluster_size - 1);
  std::uint64_t total = 0;
  std::clock_t start = std::clock();
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    const std::size_t length = encode(clusters[i], buffer);
    stored[i].assign(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(length));
    total += length == 0 ? cluster_size : length;
  }
  const double encode_time = seconds_since(start);
  start = std::clock();
  Cluster decoded(cluster_size);
  for (const auto& s : stored) {
    if (!s.empty() && !vise::codec::decompress(codec, s, decoded)) {
      fmt::print("{}: cannot decode\n", name);
      std::exit(1);
    }
  }
  const double decode_time = seconds_since(start);
  const double mib = static_cast<double>(clusters.size() * cluster_size) / (1 << 20);
  const double size = static_cast<double>(total);
  fmt::print("{:<14} {:>7.1f} MiB {:>6.3f} of input {:>+8.2f} % {:>8.1f} MiB/s {:>8.1f} MiB/s\n",
             name, size / (1 << 20), size / (mib * (1 << 20)),
             reference == 0 ? 0.0 : (size / static_cast<double>(reference) - 1) * 100,
             mib / encode_time, mib / decode_time);
  std::fflush(stdout);
  return total;
}

void measure_codec(const char* name, Codec codec, int levels, const Encoder& qemu,
                   const std::vector<Cluster>& clusters) {
  const std::uint64_t reference = measure(fmt::format("{} QEMU", name), clusters, 0, qemu, codec);
  for (int level = vise::codec::fastest; level <= levels; ++level) {
    const auto encode = [&](std::span<const std::byte> in, std::span<std::byte> out) {
      return vise::codec::compress(codec, level, in, out);
    };
    const std::string row = level == vise::codec::fastest ? fmt::format("{} fastest", name)
                            : level == vise::codec::default_level
                                ? fmt::format("{} default", name)
                                : fmt::format("{} {}", name, level);
    measure(row, clusters, reference, encode, codec);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "usage: codec_levels FILE [CLUSTER_SIZE [HIGHEST_LEVEL]]\n");
    return 1;
  }
  const std::size_t cluster_size = argc > 2 ? std::strtoul(argv[2], nullptr, 0) : 65536;
  const int levels = argc > 3 ? std::atoi(argv[3]) : 9;
  const std::vector<Cluster> clusters = read_clusters(argv[1], cluster_size);
  if (clusters.empty()) {
    fmt::print(stderr, "codec_levels: '{}' has no cluster with data\n", argv[1]);
    return 1;
  }
  fmt::print("{:<14} {:>11} {:>15} {:>10} {:>14} {:>14}\n", "", "stored", "", "to QEMU", "encode",
             "decode");
  measure_codec("zlib", Codec::deflate, levels, qemu_deflate, clusters);
  measure_codec("zstd", Codec::zstd, levels, qemu_zstd, clusters);
}
