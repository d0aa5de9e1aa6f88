// Moving compressed clusters as they are stored, without decoding them.
#include <algorithm>
#include <vector>

#include "codec/codec.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/context.h"

namespace vise::qcow2 {

namespace {

constexpr std::uint64_t most_stored_at_once = 1u << 20;  // bytes of one host read
constexpr std::uint64_t small_cluster = 8192;            // bytes; decoded in a few microseconds
constexpr std::uint64_t more_clusters = 32;              // looked at behind the last one wanted

// The stored length is an upper bound by sectors. Where the next compressed cluster was packed
// right behind this one, as writers do, its start tells the end to the byte.
std::uint64_t trimmed_length(std::span<const Descriptor> clusters, std::size_t index) {
  const Descriptor& cluster = clusters[index];
  for (const Descriptor& next : clusters.subspan(index + 1)) {
    if (!next.compressed) continue;
    if (next.host <= cluster.host) break;
    return std::min(cluster.stored_length, next.host - cluster.host);
  }
  return cluster.stored_length;
}

// Where nothing was packed behind it, the codec may know the end, or else only the decoder. That
// one is asked where up to 511 bytes of slop are a lot, or make a cluster seem not to have shrunk,
// so that it would not be taken as compressed. Damaged ones stay as long as they seem.
Task<void> trim_slop(WorkerPool& workers, std::vector<EncodedExtent>& extents,
                     std::span<const Descriptor> clusters) {
  std::vector<EncodedExtent*> vague;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    EncodedExtent& extent = extents[i];
    if (extent.data.size() < clusters[i].stored_length) continue;
    const std::uint64_t cluster_size = extent.guest_length;
    const std::size_t known = codec::stored_length(extent.codec, extent.data, cluster_size);
    if (known > 0) {
      extent.data = extent.data.first(known);
    } else if (extent.data.size() >= cluster_size || cluster_size <= small_cluster) {
      vague.push_back(&extent);
    }
  }
  const std::function<void(std::size_t)> trim = [&](std::size_t i) {
    EncodedExtent& extent = *vague[i];
    Buffer cluster(extent.guest_length);
    const codec::DecodeResult result = codec::decode(extent.codec, extent.data, cluster.span());
    if (result.ok) extent.data = extent.data.first(result.stored_length);
  };
  co_await workers.for_each(vague.size(), trim);
}

}  // namespace

Task<EncodedRun> Qcow2::read_encoded(GuestRange range) {
  require_sound();
  FlightRegister::Flight flight(flights_);
  EncodedRun run;
  const std::uint64_t cluster_size = geometry_.cluster_size;
  if (!range.start.is_aligned(cluster_size)) co_return run;
  const std::uint64_t first = geometry_.cluster_of(range.start);
  std::uint64_t most = range.length >> geometry_.cluster_bits;
  if (range.end().bytes() == header_.virtual_size) {
    most = geometry_.cluster_of(range.end() + (cluster_size - 1)) - first;
  }
  if (most == 0) co_return run;
  // Some more, to learn where the last one ends.
  const Mapping::Stretch stretch = co_await mapping_.get_stretch(first, most + more_clusters);
  if (!stretch.descriptors.front().compressed) co_return run;

  const std::vector<Descriptor>& found = stretch.descriptors;
  const HostOffset start = found.front().host;
  HostOffset end = start;
  std::vector<std::uint64_t> lengths;
  for (std::size_t i = 0; i < std::min<std::size_t>(most, found.size()); ++i) {
    const std::uint64_t length = trimmed_length(found, i);
    const bool follows = found[i].compressed && found[i].host >= end && found[i].host - end < 512 &&
                         found[i].host + length - start <= most_stored_at_once;
    if (i > 0 && !follows) break;
    lengths.push_back(length);
    end = found[i].host + length;
  }
  run.storage = Buffer(end - start);
  co_await file_->event(Event::read_compressed);
  co_await read_padded(*file_, start, run.storage.span());
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    EncodedExtent extent;
    extent.codec = header_.compression;
    extent.guest_length = cluster_size;
    extent.data = run.storage.span().subspan(found[i].host - start, lengths[i]);
    run.extents.push_back(extent);
  }
  co_await trim_slop(context_.workers(), run.extents, found);
  co_return run;
}

Task<bool> Qcow2::write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                WriteFlags) {
  require_writable();
  std::vector<StoredCluster> clusters;
  clusters.reserve(extents.size());
  for (const EncodedExtent& extent : extents) {
    const bool fits = extent.codec == header_.compression && !geometry_.data_file &&
                      extent.guest_length == geometry_.cluster_size && !extent.data.empty() &&
                      extent.data.size() < geometry_.cluster_size;
    if (!fits) co_return false;
    StoredCluster cluster;
    cluster.kind = StoredCluster::Kind::compressed;
    cluster.bytes = extent.data;
    clusters.push_back(cluster);
  }
  if (clusters.empty() || !offset.is_aligned(geometry_.cluster_size)) co_return false;

  FlightRegister::Flight flight(flights_);
  const std::uint64_t first = geometry_.cluster_of(offset);
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, first + clusters.size() - 1);
  co_await lock.held();
  ticket.set_appending(true);
  // There was nothing to wait for. Others that come at the same time are to be packed together.
  co_await context_.loop().yield();
  co_await store(first, clusters, ticket);
  co_await commit_if_due();
  co_return true;
}

}  // namespace vise::qcow2
