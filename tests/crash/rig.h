// Puts a format on a crash-disk: makes images, runs guests on them, examines what a crash left.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "crash/disk.h"
#include "crash/model.h"
#include "crash/replay.h"
#include "crash/workload.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise::crash {

/// What is tested: a format with its options, perhaps below the compress filter.
struct Config {
  std::string name;  // of the test case
  std::string format = "qcow2";
  std::uint64_t cluster_size = 4096;  // bytes; for formats without, a unit of the workload
  std::uint64_t size = 0;             // bytes of the guest's disk; 0: windows decide
  Value::Dict create_options = {};    // beside cluster_size
  std::string compress_mode = {};     // of the filter; empty: none, compressed writes go direct
  std::uint32_t disk_alignment = 1;
  bool forget_flushes = false;                // see Disk::Options
  std::function<void(Driver&)> on_open = {};  // called with the driver of the format
  /// Work on the format's node beside the guest, until that has ended and a bit longer.
  std::function<Task<void>(Graph&, Node&, const bool& guest_ended)> beside = {};
};

/// From the environment:
///   VISE_CRASH_SEED=N   the first seed (default 1)
///   VISE_CRASH_RUNS=N   seeds per case (default: what suits a test run)
///   VISE_CRASH_KEEP=DIR where the image of a failed state is saved
struct Settings {
  std::uint64_t seed = 1;
  unsigned runs = 0;  // 0: the case decides
  std::string keep;

  static Settings from_environment();
};

class Rig {
 public:
  explicit Rig(Config config);
  ~Rig();
  Rig(const Rig&) = delete;

  const Config& config() const { return config_; }
  std::uint64_t size() const { return size_; }
  const std::vector<GuestRange>& windows() const { return windows_; }

  /// A new image.
  Image create();

  /// Opens `disk`, runs a guest on it and closes it. Empty, or what went wrong; a failing close
  /// is wrong only if no errors are expected.
  std::string run_guest(Disk& disk, Model& model, Clock& clock, WorkloadOptions options);

  /// Opens `image` read-only: its metadata must have nothing worse than leaks, and what it holds
  /// must be what `model` allows after a power failure at `time` (never: after a clean end).
  /// Empty, or what is wrong.
  std::string examine(const Image& image, const Model& model, std::uint64_t time);

  /// One complete test: a guest, then all states, some of which a second guest goes on with. Empty,
  /// or what is wrong and how to see it again.
  std::string crash_and_examine(std::uint64_t seed, unsigned requests, Effort effort);
  /// States examined by all calls so far.
  std::uint64_t states() const { return states_; }

  /// The same guest again and again, while the n-th write (flush) fails, for n = 1, 2, … until none
  /// does. Empty, or what is wrong.
  std::string fail_each(Disk::Fault fault, std::uint64_t seed, unsigned requests);

 private:
  WorkloadOptions workload_options(std::uint64_t seed, unsigned requests) const;
  Value::Dict open_options(bool with_filter) const;
  std::vector<GuestRange> choose_windows();
  /// A second guest goes on after a power failure; then the power fails again.
  std::string resume_and_examine(const State& state, const Model& before, std::uint64_t seed);
  Task<void> take_over_content(Model& model, const Model& before, std::uint64_t time);
  std::string report(const std::string& problem, std::uint64_t seed, const Image& image) const;
  Task<void> create_image(Disk& disk);
  Task<void> format(std::shared_ptr<Node> disk);
  Task<std::string> use_image(Model& model, Clock& clock, WorkloadOptions options);
  Task<std::unique_ptr<Child>> open(OpenPurpose purpose);
  Task<std::string> check_metadata();
  Task<std::string> compare_content(Child& root, const Model& model, std::uint64_t time);
  Task<std::string> examine_content(const Model& model, std::uint64_t time);

  const Config config_;
  const Settings settings_ = Settings::from_environment();
  std::uint64_t size_;
  std::vector<GuestRange> windows_;
  Context context_;
  DiskDriverType disk_type_;
  Graph graph_;
  std::uint64_t states_ = 0;
};

}  // namespace vise::crash
