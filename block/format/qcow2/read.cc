// Reading: guest ranges to runs of one kind, and each run from where it lies.
#include <algorithm>
#include <cassert>
#include <cerrno>

#include "format/qcow2/qcow2.h"
#include "vise/error.h"

namespace vise::qcow2 {

namespace {

// What a stretch of subclusters with the bits of `descriptor` reads as.
Extent::Kind kind_of(const Descriptor& descriptor, unsigned subcluster) {
  if (descriptor.compressed) return Extent::Kind::compressed;
  const std::uint32_t bit = std::uint32_t{1} << subcluster;
  if ((descriptor.allocated & bit) != 0) return Extent::Kind::data;
  if ((descriptor.zero & bit) != 0) return Extent::Kind::zero;
  return Extent::Kind::backing;
}

}  // namespace

GuestOffset Qcow2::cluster_end(std::uint64_t cluster) const {
  return std::min(geometry_.guest_offset(cluster + 1), GuestOffset(header_.virtual_size));
}

// Adds a stretch inside one subcluster; false if it is of another kind or lies elsewhere.
bool Qcow2::extend_run(Run& run, const Descriptor& descriptor, GuestOffset at,
                       std::uint64_t length) const {
  const std::uint64_t in_cluster = geometry_.offset_in_cluster(at.bytes());
  const auto subcluster = static_cast<unsigned>(in_cluster / geometry_.subcluster_size);
  const Extent::Kind kind = kind_of(descriptor, subcluster);
  std::optional<HostOffset> host;
  if (descriptor.has_host && !descriptor.compressed) {
    host = descriptor.host + in_cluster;
  }
  if (run.length == 0) {
    run.kind = kind;
    run.host = host;
  } else {
    if (run.kind != kind || run.host.has_value() != host.has_value()) return false;
    if (host && *run.host + run.length != *host) return false;
  }
  if (kind == Extent::Kind::compressed) run.compressed.push_back(descriptor);
  run.length += length;
  return true;
}

Task<Qcow2::Run> Qcow2::find_run(GuestRange range, Mapping::Use use) {
  Run run;
  const GuestOffset end = range.end();
  GuestOffset at = range.start;
  while (at < end) {
    const std::uint64_t first = geometry_.cluster_of(at);
    const std::uint64_t most = geometry_.cluster_of(end - 1) - first + 1;
    // Mostly without a coroutine: a look at what the cache has.
    std::optional<Mapping::ClusterRun> found = mapping_.try_get_run(first, most, use);
    if (!found) {
      const Mapping::ClusterRun loaded = co_await mapping_.get_run(first, most, use);
      found = loaded;
    }
    const Descriptor& descriptor = found->descriptor;
    if (descriptor.compressed) {
      if (run.length > 0 && run.kind != Extent::Kind::compressed) break;
      const bool same = co_await extend_compressed(run, at, end);
      if (!same) break;
      continue;
    }
    const GuestOffset until = std::min(end, geometry_.guest_offset(first + found->count));
    const bool uniform = descriptor.is_uniform(geometry_);
    while (at < until) {
      const GuestOffset next = uniform ? until
                                       : std::min(until, at.align_down(geometry_.subcluster_size) +
                                                             geometry_.subcluster_size);
      if (!extend_run(run, descriptor, at, next - at)) co_return run;
      at = next;
    }
  }
  co_return run;
}

// Adds compressed clusters from `at` on, as far as one slice goes, and moves `at` behind them;
// false if they end the run.
Task<bool> Qcow2::extend_compressed(Run& run, GuestOffset& at, GuestOffset end) {
  const std::uint64_t first = geometry_.cluster_of(at);
  const std::uint64_t last = geometry_.cluster_of(end - 1);
  const Mapping::Stretch stretch = co_await mapping_.get_stretch(first, last - first + 1);
  for (std::uint64_t i = 0; i < stretch.count; ++i) {
    const Descriptor& descriptor = stretch.descriptors[stretch.same ? 0 : i];
    if (!descriptor.compressed) break;
    const GuestOffset until = std::min(end, geometry_.guest_offset(first + i + 1));
    if (!extend_run(run, descriptor, at, until - at)) co_return false;
    at = until;
  }
  co_return true;
}

// What lies somewhere as it is; all else has to be read.
Task<std::uint64_t> Qcow2::copy_out(GuestRange range, CopySink& sink) {
  require_sound();
  FlightRegister::Flight flight(flights_);
  const Run run = co_await find_run(range, Mapping::Use::once);
  if (run.kind == Extent::Kind::data) {
    Child& from = data();
    const HostRange there =
        HostRange{*run.host, run.length}.intersection({HostOffset(0), from.size()});
    if (there.empty()) co_return 0;  // zeros, like everything behind the end of the file
    co_return co_await from.copy_out(there, sink);
  }
  if (run.kind != Extent::Kind::backing || !backing_) co_return 0;
  const std::uint64_t below = backing_->size();
  if (range.start.bytes() >= below) co_return 0;
  const GuestRange part{range.start, std::min(run.length, below - range.start.bytes())};
  co_return co_await backing_->copy_out(part, sink);
}

Task<Extent> Qcow2::map(GuestRange range, MapMode mode) {
  require_sound();
  Extent extent;
  const std::uint64_t cluster = geometry_.cluster_of(range.start);
  const Mapping::ClusterRun first = co_await mapping_.get_run(cluster, 1, Mapping::Use::once);
  if (first.descriptor.compressed) {
    // One cluster at a time, so that each extent has one place and length.
    extent.kind = Extent::Kind::compressed;
    extent.length = std::min(
        range.length, geometry_.cluster_size - geometry_.offset_in_cluster(range.start.bytes()));
    extent.host = first.descriptor.host;
    extent.stored_length = first.descriptor.stored_length;
    co_return extent;
  }
  const Run run = co_await find_run(range, Mapping::Use::once);
  extent.kind = run.kind;
  extent.length = run.length;
  extent.host = run.host;
  if (run.host) extent.node = &data().node();
  if (run.kind == Extent::Kind::data && mode == MapMode::precise) {
    extent.may_have_holes = co_await looks_preallocated();
  }
  co_return extent;
}

Task<void> Qcow2::read(GuestOffset offset, IoVec data) {
  require_sound();
  FlightRegister::Flight flight(flights_);
  co_await read_range(offset, data);
}

// No lock is held from the look-up to the data read. A discard may unmap the cluster meanwhile,
// but freed space is not reused until the requests in flight when it was freed have ended, so at
// worst we return what was there before.
Task<void> Qcow2::read_range(GuestOffset offset, IoVec data) {
  Run run = co_await find_run({offset, data.size()}, Mapping::Use::keep);
  if (run.length == data.size()) {
    co_await read_run(std::move(run), offset, data);
    co_return;
  }
  constexpr std::size_t most_at_once = 64;  // runs in flight of one request
  TaskScope scope;
  std::exception_ptr failure;
  try {
    for (;;) {
      const std::uint64_t length = run.length;
      scope.spawn(read_run(std::move(run), offset, data.first(length)));
      offset += length;
      data = data.slice(length);
      if (data.empty() || scope.failed()) break;
      if (scope.running() >= most_at_once) co_await scope.join();
      Run next = co_await find_run({offset, data.size()}, Mapping::Use::keep);
      run = std::move(next);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await scope.join();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
}

Task<void> Qcow2::read_run(Run run, GuestOffset offset, IoVec data) {
  switch (run.kind) {
    case Extent::Kind::zero:
      data.fill(std::byte{0});
      break;
    case Extent::Kind::data: {
      // Like everything in the format, data beyond the end of the file reads as zeros.
      co_await file_->event(Event::read_aio);
      Child& from = this->data();
      const std::uint64_t size = from.size();
      const std::uint64_t start = run.host->bytes();
      const std::uint64_t there = start < size ? std::min(size - start, data.size()) : 0;
      if (there > 0) co_await from.read(*run.host, data.first(there));
      data.slice(there).fill(std::byte{0});
      break;
    }
    case Extent::Kind::backing:
      co_await read_backing(offset, data);
      break;
    case Extent::Kind::compressed:
      co_await read_compressed(std::move(run.compressed), offset, data);
      break;
  }
}

Task<void> Qcow2::read_backing(GuestOffset offset, IoVec data) {
  std::uint64_t there = 0;
  if (backing_) {
    const std::uint64_t size = backing_->size();
    if (offset.bytes() < size) there = std::min(size - offset.bytes(), data.size());
    if (there > 0) {
      co_await file_->event(Event::read_backing_aio);
      co_await backing_->read(offset, data.first(there));
    }
  }
  data.slice(there).fill(std::byte{0});
}

}  // namespace vise::qcow2
