// A guest: random requests, several at a time, each told to the model.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "crash/model.h"
#include "vise/child.h"
#include "vise/sync.h"

namespace vise::crash {

struct WorkloadOptions {
  std::uint64_t seed = 1;
  unsigned in_flight = 4;           // requests at a time
  unsigned requests = 120;          // of all together
  std::uint64_t cluster_size = 0;   // bytes
  std::vector<GuestRange> windows;  // where requests go; they start at cluster borders
  bool compressed_writes = true;    // else all writes are normal ones
  bool errors_expected = false;     // the disk fails
};

class Workload {
 public:
  Workload(Child& root, Model& model, Clock& clock, WorkloadOptions options);

  /// Sends all requests and waits for them.
  Task<void> run();

  /// The first thing that went wrong: a failed request, a read of something never written.
  const std::string& problem() const { return problem_; }
  unsigned failed_requests() const { return failed_; }

 private:
  Task<void> send_requests();
  Task<void> send_request();
  Task<void> write(GuestRange range, WriteFlags flags);
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags);
  Task<void> discard(GuestRange range);
  Task<void> read_and_compare(GuestRange range);
  Task<void> flush();
  std::uint64_t below(std::uint64_t limit) { return random_() % limit; }
  GuestRange random_sectors();
  GuestRange random_clusters();
  void failed(const std::string& what, const Error& error);

  Child& root_;
  Model& model_;
  Clock& clock_;
  const WorkloadOptions options_;
  std::mt19937_64 random_;
  unsigned sent_ = 0;
  unsigned failed_ = 0;
  std::string problem_;
};

}  // namespace vise::crash
