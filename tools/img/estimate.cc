#include "tools/img/estimate.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "format/qcow2/create_options.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/graph.h"
#include "vise/sync.h"
#include "vise/util/checked.h"

namespace vise::tools {

namespace {

constexpr std::uint64_t most_sampled = 2048;  // clusters
constexpr std::uint64_t least_sampled = 64;
constexpr std::uint64_t sampled_bytes = 256 << 20;
constexpr std::uint64_t batch_bytes = 16 << 20;  // in memory at a time

// Consecutive clusters in which the source may have more than zeros.
struct Run {
  std::uint64_t first;  // cluster
  std::uint64_t count;
};

class Estimate {
 public:
  Estimate(Child& source, const qcow2::Header& header, Codec codec, int level)
      : source_(source), header_(header), codec_(codec), level_(level) {}

  Task<CompressedEstimate> run();

 private:
  Task<void> find_data();
  std::vector<std::uint64_t> choose(std::uint64_t count) const;
  Task<void> measure(std::span<const std::uint64_t> clusters);
  Task<void> read_cluster(std::uint64_t cluster, std::span<std::byte> data);
  double stored_length(std::span<const std::byte> cluster) const;
  std::uint64_t metadata(std::uint64_t data_bytes) const;

  Child& source_;
  const qcow2::Header& header_;
  Codec codec_;
  int level_;
  std::vector<Run> runs_;
  std::uint64_t data_clusters_ = 0;
  std::uint64_t l2_tables_ = 0;
  std::vector<double> lengths_;  // stored bytes of each sampled cluster
};

Task<void> Estimate::find_data() {
  const std::uint64_t cluster = header_.cluster_size();
  const std::uint64_t size = source_.size();
  std::uint64_t last_table = UINT64_MAX;
  for (std::uint64_t offset = 0; offset < size;) {
    const GuestRange range{GuestOffset(offset), size - offset};
    const BlockStatus status = co_await block_status(source_.node(), range);
    const std::uint64_t length = std::min(status.length, range.length);
    if (status.zero || !status.data) {
      offset += length;
      continue;
    }
    const Run run{offset / cluster, divide_up(offset + length, cluster) - offset / cluster};
    const std::uint64_t first_table = run.first / header_.l2_entries();
    const std::uint64_t table = (run.first + run.count - 1) / header_.l2_entries();
    l2_tables_ += table - first_table + (first_table != last_table ? 1 : 0);
    last_table = table;
    data_clusters_ += run.count;
    runs_.push_back(run);
    offset = (run.first + run.count) * cluster;
  }
}

// One cluster out of each of `count` equal parts of the data clusters: all of them, if there are no
// more.
std::vector<std::uint64_t> Estimate::choose(std::uint64_t count) const {
  std::mt19937_64 random(1);  // the same choice each time
  std::vector<std::uint64_t> chosen;
  auto run = runs_.begin();
  std::uint64_t before = 0;  // data clusters in front of `run`
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto bound = [&](std::uint64_t part) {
      return static_cast<std::uint64_t>(static_cast<double>(data_clusters_) *
                                        static_cast<double>(part) / static_cast<double>(count));
    };
    const std::uint64_t first = bound(i);
    const std::uint64_t index = first + random() % (bound(i + 1) - first);
    for (; index >= before + run->count; ++run) before += run->count;
    chosen.push_back(run->first + (index - before));
  }
  return chosen;
}

// The end of the disk may cut the last cluster off; what is missing is zeros.
Task<void> Estimate::read_cluster(std::uint64_t cluster, std::span<std::byte> data) {
  const std::uint64_t offset = cluster * data.size();
  const std::uint64_t length = std::min<std::uint64_t>(data.size(), source_.size() - offset);
  co_await source_.read(GuestOffset(offset), IoVec(data.first(length)));
  std::ranges::fill(data.subspan(length), std::byte{0});
}

double Estimate::stored_length(std::span<const std::byte> cluster) const {
  if (is_zero(cluster)) return 0;
  std::vector<std::byte> stored(cluster.size() - 1);
  const std::size_t length = codec::compress(codec_, level_, cluster, stored);
  return static_cast<double>(length > 0 ? length : cluster.size());
}

Task<void> Estimate::measure(std::span<const std::uint64_t> clusters) {
  const std::size_t cluster_size = header_.cluster_size();
  const std::size_t at_once = std::max<std::size_t>(1, batch_bytes / cluster_size);
  WorkerPool& workers = source_.node().graph().context().workers();
  while (!clusters.empty()) {
    const auto batch = clusters.first(std::min(at_once, clusters.size()));
    Buffer data(batch.size() * cluster_size);
    const auto part = [&](std::size_t i) {
      return data.span().subspan(i * cluster_size, cluster_size);
    };
    TaskScope reads;
    for (std::size_t i = 0; i < batch.size(); ++i) reads.spawn(read_cluster(batch[i], part(i)));
    co_await reads.join();
    const std::size_t done = lengths_.size();
    lengths_.resize(done + batch.size());
    std::function<void(std::size_t)> job = [&](std::size_t i) {
      lengths_[done + i] = stored_length(part(i));
    };
    co_await workers.for_each(batch.size(), std::move(job));
    clusters = clusters.subspan(batch.size());
  }
}

// Header, mapping tables where they are needed, and refcounts of everything.
std::uint64_t Estimate::metadata(std::uint64_t data_bytes) const {
  const std::uint64_t cluster = header_.cluster_size();
  const std::uint64_t l2_entries = divide_up(header_.virtual_size, cluster);
  const std::uint64_t l1 = divide_up(divide_up(l2_entries, header_.l2_entries()) * 8, cluster);
  const std::uint64_t counted = 1 + l1 + l2_tables_ + divide_up(data_bytes, cluster);
  // Each block of counts is counted in one as well; the table takes a cluster and rarely more.
  const std::uint64_t blocks = divide_up(counted + 2, header_.refcount_block_entries() - 1);
  const std::uint64_t table = divide_up(blocks * 8, cluster);
  return (1 + l1 + l2_tables_ + blocks + table) * cluster;
}

Task<CompressedEstimate> Estimate::run() {
  co_await find_data();
  const std::uint64_t cluster = header_.cluster_size();
  const std::uint64_t wanted = std::clamp(sampled_bytes / cluster, least_sampled, most_sampled);
  const std::uint64_t count = std::min(wanted, data_clusters_);
  const std::vector<std::uint64_t> chosen = choose(count);
  co_await measure(chosen);
  double sum = 0;
  for (const double length : lengths_) sum += length;
  const auto n = static_cast<double>(count);
  const auto all = static_cast<double>(data_clusters_);
  const double mean = count > 0 ? sum / n : 0;
  double squares = 0;
  for (const double length : lengths_) squares += (length - mean) * (length - mean);
  CompressedEstimate result;
  result.data_clusters = data_clusters_;
  result.sampled_clusters = count;
  const auto data = static_cast<std::uint64_t>(std::llround(mean * all));
  result.size = metadata(data) + data;
  if (count > 1 && count < data_clusters_) {
    // Of a sample without repetition; parts of equal size make it better, never worse on average.
    const double deviation = std::sqrt(squares / (n - 1) / n * (1 - n / all));
    result.error = static_cast<std::uint64_t>(std::ceil(1.96 * deviation * all));
  }
  co_return result;
}

}  // namespace

Task<CompressedEstimate> estimate_compressed(Child& source, const Value::Dict& options, int level) {
  const qcow2::CreateOptions parsed = qcow2::CreateOptions::parse(options);
  codec::check_level(parsed.compression, level);
  const qcow2::Header header = parsed.header(source.size());
  Estimate estimate(source, header, parsed.compression, level);
  co_return co_await estimate.run();
}

}  // namespace vise::tools
