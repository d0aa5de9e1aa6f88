// The check of compressed data: table by table, neighbours in one host read, decoded on all cores.
#include "format/qcow2/check_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "codec/codec.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/raw_entry.h"
#include "vise/buffer.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/sync.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t most_stored_at_once = 1u << 20;  // bytes of one host read
constexpr std::size_t most_clusters_at_once = 64;
constexpr std::size_t reads_in_flight = 4;

class DataCheck {
 public:
  DataCheck(Child& file, const Header& header, const CheckRequest& request, CheckResult& result)
      : file_(file),
        header_(header),
        request_(request),
        result_(result),
        workers_(file.node().graph().context().workers()) {}

  Task<void> run(const std::vector<L2Use>& tables);

 private:
  struct Stored {
    std::uint64_t guest;  // offset
    HostRange range;      // upper bound
    bool in_snapshot;
  };
  using Group = std::vector<Stored>;

  std::vector<Stored> entries_of(const L2Use& use, std::span<const std::byte> table) const;
  Task<void> check_entries(std::vector<Stored> entries, double fraction_before, double fraction);
  Task<void> check_group(Group group);
  Task<void> decode(Group group, Buffer stored);
  void damaged(const Stored& cluster);
  void report(const std::string& text) const {
    if (request_.on_finding) request_.on_finding(text);
  }
  void progress(double fraction) const {
    if (request_.on_progress) request_.on_progress(fraction);
  }

  Child& file_;
  const Header& header_;
  const CheckRequest& request_;
  CheckResult& result_;
  WorkerPool& workers_;
};

Task<void> DataCheck::run(const std::vector<L2Use>& tables) {
  result_.data.emplace();
  Buffer table(header_.cluster_size());
  const double share = 1.0 / static_cast<double>(std::max<std::size_t>(1, tables.size()));
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const double before = share * static_cast<double>(i);
    progress(before);
    bool readable = true;
    try {
      co_await read_zero_extended(file_, tables[i].offset, table.span());
    } catch (const Error& error) {
      if (error.code() == ECANCELED) throw;
      readable = false;  // the check of the metadata has told it
    }
    if (!readable) continue;
    std::vector<Stored> entries = entries_of(tables[i], table.span());
    co_await check_entries(std::move(entries), before, share);
  }
  progress(1);
}

std::vector<DataCheck::Stored> DataCheck::entries_of(const L2Use& use,
                                                     std::span<const std::byte> table) const {
  std::vector<Stored> entries;
  for (std::uint64_t i = 0; i < header_.l2_entries(); ++i) {
    const auto word = load_be<std::uint64_t>(table.data() + i * header_.l2_entry_size());
    if ((word & raw_entry::compressed) == 0) continue;
    const std::uint64_t guest = (use.l1_index * header_.l2_entries() + i) << header_.cluster_bits;
    entries.push_back(
        {guest, raw_entry::compressed_range(word, header_.cluster_bits), use.active == 0});
  }
  std::ranges::sort(entries, {}, [](const Stored& entry) { return entry.range.start; });
  return entries;
}

Task<void> DataCheck::check_entries(std::vector<Stored> entries, double fraction_before,
                                    double fraction) {
  TaskScope scope;
  for (std::size_t i = 0; i < entries.size();) {
    Group group;
    HostOffset end = entries[i].range.start;
    const HostOffset start = end;
    for (; i < entries.size() && group.size() < most_clusters_at_once; ++i) {
      const HostRange& range = entries[i].range;
      const bool joins =
          group.empty() || (range.start <= end && range.end() - start <= most_stored_at_once);
      if (!joins) break;
      end = std::max(end, range.end());
      group.push_back(entries[i]);
    }
    scope.spawn(check_group(std::move(group)));
    if (scope.running() >= reads_in_flight) co_await scope.join();
    const double done = static_cast<double>(i) / static_cast<double>(entries.size());
    progress(fraction_before + fraction * done);
  }
  co_await scope.join();
}

Task<void> DataCheck::check_group(Group group) {
  const HostOffset start = group.front().range.start;
  HostOffset end = start;
  for (const Stored& cluster : group) end = std::max(end, cluster.range.end());
  Buffer stored(end - start);
  std::string error;
  try {
    co_await read_zero_extended(file_, start, stored.span());
  } catch (const Error& e) {
    if (e.code() == ECANCELED) throw;
    error = e.what();
  }
  if (error.empty()) {
    co_await decode(std::move(group), std::move(stored));
  } else if (group.size() > 1) {
    // One bad sector must not hide what its neighbours are like.
    for (const Stored& cluster : group) {
      Group alone(1, cluster);
      co_await check_group(std::move(alone));
    }
  } else {
    ++result_.check_errors;
    report(fmt::format("ERROR compressed cluster of guest offset {:#x} at host offset {:#x}: {}",
                       group.front().guest, start.bytes(), error));
  }
}

Task<void> DataCheck::decode(Group group, Buffer stored) {
  const HostOffset start = group.front().range.start;
  std::vector<codec::DecodeResult> decoded(group.size());
  co_await workers_.for_each(group.size(), [&](std::size_t i) {
    const HostRange& range = group[i].range;
    Buffer cluster(header_.cluster_size());
    decoded[i] =
        codec::decode(header_.compression, stored.span().subspan(range.start - start, range.length),
                      cluster.span());
  });
  for (std::size_t i = 0; i < group.size(); ++i) {
    ++result_.data->clusters;
    if (decoded[i].had_checksum) ++result_.data->with_checksum;
    if (!decoded[i].ok) damaged(group[i]);
  }
}

void DataCheck::damaged(const Stored& cluster) {
  ++result_.data->damaged;
  report(fmt::format(
      "ERROR compressed cluster of guest offset {:#x}{} at host offset {:#x} is "
      "damaged",
      cluster.guest, cluster.in_snapshot ? " of a snapshot" : "", cluster.range.start.bytes()));
  if (!request_.on_damaged) return;
  DamagedCluster found;
  found.guest_offset = cluster.guest;
  found.host_offset = cluster.range.start.bytes();
  found.stored_length = cluster.range.length;
  found.in_snapshot = cluster.in_snapshot;
  request_.on_damaged(found);
}

}  // namespace

Task<void> check_data(Child& file, const Header& header, const CheckRequest& request,
                      const std::vector<L2Use>& tables, CheckResult& result) {
  DataCheck check(file, header, request, result);
  co_await check.run(tables);
}

}  // namespace vise::qcow2
