// Contents are chosen, and told to the model, before a request is sent: it may arrive at any time
// from then on.
#include "crash/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::crash {

Workload::Workload(Child& root, Model& model, Clock& clock, WorkloadOptions options)
    : root_(root),
      model_(model),
      clock_(clock),
      options_(std::move(options)),
      random_(options_.seed) {}

Task<void> Workload::run() {
  TaskScope scope;
  for (unsigned i = 0; i < options_.in_flight; ++i) scope.spawn(send_requests());
  co_await scope.join();
}

Task<void> Workload::send_requests() {
  while (sent_ < options_.requests && problem_.empty()) {
    ++sent_;
    co_await send_request();
  }
}

Task<void> Workload::send_request() {
  const std::uint64_t kind = below(100);
  if (kind < 30) {
    const WriteFlags flags{.fua = below(8) == 0};
    co_await write(random_sectors(), flags);
  } else if (kind < 60) {
    const WriteFlags flags{.fua = below(12) == 0, .compressed = options_.compressed_writes};
    co_await write(random_clusters(), flags);
  } else if (kind < 68) {
    const GuestRange range = below(2) == 0 ? random_sectors() : random_clusters();
    const ZeroFlags flags{.may_unmap = below(2) == 0, .fua = below(8) == 0};
    co_await write_zeroes(range, flags);
  } else if (kind < 76) {
    co_await discard(random_clusters());
  } else if (kind < 88) {
    co_await read_and_compare(random_sectors());
  } else {
    co_await flush();
  }
}

GuestRange Workload::random_sectors() {
  const GuestRange window = options_.windows[below(options_.windows.size())];
  const std::uint64_t sectors = window.length / sector_size;
  const std::uint64_t first = below(sectors);
  const std::uint64_t most = std::max<std::uint64_t>(1, 3 * options_.cluster_size / sector_size);
  const std::uint64_t count = 1 + below(std::min(most, sectors - first));
  return {window.start + first * sector_size, count * sector_size};
}

/// One to four clusters, or what the end of the disk leaves of them.
GuestRange Workload::random_clusters() {
  const GuestRange window = options_.windows[below(options_.windows.size())];
  const std::uint64_t clusters = divide_up(window.length, options_.cluster_size);
  const std::uint64_t first = below(clusters);
  const std::uint64_t count = 1 + below(std::min<std::uint64_t>(4, clusters - first));
  const std::uint64_t end = std::min((first + count) * options_.cluster_size, window.length);
  return {window.start + first * options_.cluster_size, end - first * options_.cluster_size};
}

Task<void> Workload::write(GuestRange range, WriteFlags flags) {
  const Content content = model_.next_content();
  Buffer buffer(range.length);
  fill(buffer, range.start.bytes() / sector_size, content);
  const Model::Request request =
      model_.begin(range.start.bytes(), range.length, content, Model::Effect::surely);
  try {
    co_await root_.write(range.start, ConstIoVec(buffer.span()), flags);
    model_.complete(request, flags.fua);
  } catch (const Error& error) {
    model_.fail(request);
    failed(flags.compressed ? "compressed write" : "write", error);
  }
}

Task<void> Workload::write_zeroes(GuestRange range, ZeroFlags flags) {
  const Model::Request request =
      model_.begin(range.start.bytes(), range.length, 0, Model::Effect::surely);
  try {
    co_await root_.write_zeroes(range, flags);
    model_.complete(request, flags.fua);
  } catch (const Error& error) {
    model_.fail(request);
    failed("write of zeroes", error);
  }
}

Task<void> Workload::discard(GuestRange range) {
  const Model::Request request =
      model_.begin(range.start.bytes(), range.length, 0, Model::Effect::possibly);
  try {
    co_await root_.discard(range);
    model_.complete(request, false);
  } catch (const Error& error) {
    model_.fail(request);
    failed("discard", error);
  }
}

Task<void> Workload::read_and_compare(GuestRange range) {
  Buffer buffer(range.length);
  const std::uint64_t sent = clock_.tick();
  try {
    co_await root_.read(range.start, IoVec(buffer.span()));
    const std::string wrong = model_.compare_live(range.start.bytes(), buffer, sent);
    if (!wrong.empty() && problem_.empty()) problem_ = "read by the running guest: " + wrong;
  } catch (const Error& error) {
    failed("read", error);
  }
}

Task<void> Workload::flush() {
  const std::uint64_t sent = clock_.tick();
  try {
    co_await root_.flush();
    model_.complete_flush(sent);
  } catch (const Error& error) {
    failed("flush", error);
  }
}

void Workload::failed(const std::string& what, const Error& error) {
  ++failed_;
  if (!options_.errors_expected && problem_.empty()) {
    problem_ = fmt::format("{} failed: {}", what, error.what());
  }
}

}  // namespace vise::crash
