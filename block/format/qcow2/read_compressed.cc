// Reading compressed clusters: adjacent ones in one host read, decoded in parallel straight into
// the reader's buffers; partly read ones through the cache of decoded clusters.
#include <algorithm>
#include <atomic>
#include <cerrno>

#include <fmt/format.h>

#include "codec/codec.h"
#include "format/qcow2/qcow2.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t most_stored_at_once = 2u << 20;  // bytes of one host read

Error undecodable(const Descriptor& cluster) {
  return Error(EIO, fmt::format("compressed cluster at host offset {:#x} cannot be decoded: its "
                                "data is damaged",
                                cluster.host.bytes()));
}

// True if one host read can serve both: `next` starts inside or right behind the bytes that may
// belong to `cluster`.
bool adjacent(const Descriptor& cluster, const Descriptor& next) {
  return next.host >= cluster.host && next.host <= cluster.host + cluster.stored_length;
}

}  // namespace

Task<void> Qcow2::read_compressed(std::vector<Descriptor> clusters, GuestOffset offset,
                                  IoVec data) {
  const std::uint64_t cluster_size = geometry_.cluster_size;
  TaskScope scope;
  std::size_t i = 0;
  while (i < clusters.size()) {
    const std::uint64_t in_cluster = geometry_.offset_in_cluster(offset.bytes());
    const std::uint64_t length = std::min(cluster_size - in_cluster, data.size());
    // A whole cluster of the disk may be shorter than a cluster, at the end.
    const bool whole = length == cluster_size;
    if (!whole) {
      look_ahead({offset, length});
      scope.spawn(read_part(clusters[i], in_cluster, data.first(length)));
      ++i;
      offset += length;
      data = data.slice(length);
      continue;
    }
    std::size_t end = i + 1;
    while (end < clusters.size() && (end - i + 1) * cluster_size <= data.size() &&
           adjacent(clusters[end - 1], clusters[end]) &&
           clusters[end].host + clusters[end].stored_length - clusters[i].host <=
               most_stored_at_once) {
      ++end;
    }
    const std::uint64_t group = (end - i) * cluster_size;
    scope.spawn(read_group(std::span(clusters).subspan(i, end - i), data.first(group)));
    i = end;
    offset += group;
    data = data.slice(group);
  }
  co_await scope.join();
}

Task<void> Qcow2::read_group(std::span<const Descriptor> clusters, IoVec data) {
  const HostOffset start = clusters.front().host;
  const std::uint64_t length = clusters.back().host + clusters.back().stored_length - start;
  Buffer stored(length);
  co_await file_->event(Event::read_compressed);
  co_await read_padded(*file_, start, stored.span());

  const Codec codec = header_.compression;
  const std::uint64_t cluster_size = geometry_.cluster_size;
  std::atomic<std::size_t> damaged{clusters.size()};  // index of a damaged cluster
  co_await context_.workers().for_each(clusters.size(), [&](std::size_t i) {
    const auto from = std::span<const std::byte>(stored.span())
                          .subspan(clusters[i].host - start, clusters[i].stored_length);
    const IoVec to = data.slice(i * cluster_size, cluster_size);
    bool decoded = false;
    if (to.is_contiguous()) {
      decoded = codec::decompress(codec, from, to.contiguous());
    } else {
      Buffer cluster(cluster_size);
      decoded = codec::decompress(codec, from, cluster.span());
      to.copy_from(cluster.span());
    }
    if (!decoded) damaged = i;
  });
  if (damaged < clusters.size()) throw undecodable(clusters[damaged]);
}

Task<void> Qcow2::read_part(Descriptor cluster, std::uint64_t offset_in_cluster, IoVec data) {
  const std::uint64_t end = offset_in_cluster + data.size();
  DecodedCache::Decode decode = [this, &cluster, end](DecodedCache::Extent extent) {
    return decode_cluster(cluster, extent == DecodedCache::Extent::head ? end : 0);
  };
  std::shared_ptr<DecodedCache::Entry> entry =
      co_await decoded_.get(cluster.host, end, std::move(decode));
  data.copy_from(
      std::span<const std::byte>(entry->cluster.span()).subspan(offset_in_cluster, data.size()));
}

// Somebody who reads on in small steps finds the next clusters decoded.
void Qcow2::look_ahead(GuestRange part) {
  const ReadAhead::Clusters wanted = read_ahead_.next(part);
  const std::uint64_t end = geometry_.cluster_of(GuestOffset(header_.virtual_size - 1)) + 1;
  for (std::uint64_t i = 0; i < wanted.count && wanted.first + i < end; ++i) {
    decoding_ahead_.spawn(decode_ahead(wanted.first + i));
  }
}

Task<void> Qcow2::decode_ahead(std::uint64_t cluster) {
  const FlightRegister::Flight flight(flights_);
  try {
    const Descriptor descriptor = co_await mapping_.get(cluster);
    if (!descriptor.compressed) co_return;
    DecodedCache::Decode decode = [this, &descriptor](DecodedCache::Extent) {
      return decode_cluster(descriptor, 0);
    };
    co_await decoded_.get(descriptor.host, geometry_.cluster_size, std::move(decode));
  } catch (const Error&) {
    // Whoever really reads it will be told.
  }
}

// The whole cluster, or its first `head` bytes (0: the whole) where that is faster.
Task<Buffer> Qcow2::decode_cluster(Descriptor cluster, std::uint64_t head) {
  Buffer stored(cluster.stored_length);
  co_await file_->event(Event::read_compressed);
  co_await read_padded(*file_, cluster.host, stored.span());
  const Codec codec = header_.compression;
  const std::uint64_t cluster_size = geometry_.cluster_size;
  Buffer decoded(cluster_size);
  Buffer start(head < cluster_size ? head : 0);
  bool is_head = false;
  bool good = false;
  co_await context_.workers().run([&] {
    is_head =
        !start.empty() && codec::decode_head(codec, stored.span(), cluster_size, start.span());
    good = is_head || codec::decompress(codec, stored.span(), decoded.span());
  });
  if (is_head) decoded = std::move(start);
  if (!good) throw undecodable(cluster);
  co_return decoded;
}

}  // namespace vise::qcow2
