// Everything here runs on one event loop and one graph; only the disk under the crash-disk nodes
// changes from one opening to the next.
#include "crash/rig.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "vise/buffer.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::crash {

namespace {

/// After one in so many power failures, a guest goes on with what is left.
constexpr unsigned states_per_resumption = 50;

/// Guest bytes that one L2 table of a qcow2 image maps.
std::uint64_t table_coverage(const Config& config) {
  return config.cluster_size / 8 * config.cluster_size;
}

std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

}  // namespace

Settings Settings::from_environment() {
  Settings settings;
  settings.seed = number_from_environment("VISE_CRASH_SEED", 1);
  settings.runs = static_cast<unsigned>(number_from_environment("VISE_CRASH_RUNS", 0));
  if (const char* directory = std::getenv("VISE_CRASH_KEEP")) settings.keep = directory;
  return settings;
}

Rig::Rig(Config config)
    : config_(std::move(config)),
      size_(config_.size),
      windows_(choose_windows()),
      graph_(context_) {
  context_.drivers().add(disk_type_);
}

Rig::~Rig() { context_.loop().run(graph_.close_all()); }

/// The start of the disk, the border between two L2 tables, and the end of the disk, which is not
/// at the end of a cluster: few clusters, so that each is written many times.
std::vector<GuestRange> Rig::choose_windows() {
  const std::uint64_t cluster = config_.cluster_size;
  const std::uint64_t coverage = table_coverage(config_);
  if (size_ == 0)
    size_ = std::min(2 * coverage, std::uint64_t{64} << 20) + 5 * cluster + sector_size;
  std::vector<GuestRange> windows = {{GuestOffset(0), 12 * cluster}};
  if (coverage + 4 * cluster < size_) {
    windows.push_back({GuestOffset(coverage - 4 * cluster), 8 * cluster});
  }
  const std::uint64_t last = (size_ / cluster - 4) * cluster;
  windows.push_back({GuestOffset(last), size_ - last});
  return windows;
}

Image Rig::create() {
  Clock clock;
  Disk disk(clock, Image(), {});
  context_.loop().run(create_image(disk));
  return disk.image();
}

Task<void> Rig::create_image(Disk& disk) {
  disk_type_.disk = &disk;
  OpenRequest open;
  open.options.set("driver", "crash-disk");
  const std::shared_ptr<Node> node = co_await graph_.open(std::move(open));
  std::exception_ptr failure;
  try {
    co_await format(node);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await graph_.release(node);
  if (failure) std::rethrow_exception(failure);
}

Task<void> Rig::format(std::shared_ptr<Node> disk) {
  if (config_.format == "raw") {
    co_await disk->driver().truncate(size_, {});
    co_return;
  }
  CreateRequest request{graph_, "crash-test", size_, config_.create_options, std::move(disk)};
  request.options.set("cluster_size", config_.cluster_size);
  co_await context_.drivers().get(config_.format).create(request);
}

Value::Dict Rig::open_options(bool with_filter) const {
  Value::Dict disk;
  disk.set("driver", "crash-disk");
  Value::Dict format;
  format.set("driver", config_.format);
  format.set("discard", "unmap");
  format.set("file", std::move(disk));
  if (!with_filter || config_.compress_mode.empty()) return format;
  Value::Dict filter;
  filter.set("driver", "compress");
  filter.set("mode", config_.compress_mode);
  filter.set("discard", "unmap");
  filter.set("file", std::move(format));
  return filter;
}

std::string Rig::run_guest(Disk& disk, Model& model, Clock& clock, WorkloadOptions options) {
  disk_type_.disk = &disk;
  return context_.loop().run(use_image(model, clock, std::move(options)));
}

Task<std::string> Rig::use_image(Model& model, Clock& clock, WorkloadOptions options) {
  const bool errors_expected = options.errors_expected;
  OpenRequest request;
  request.options = open_options(true);
  std::unique_ptr<Child> root = co_await graph_.open_root(std::move(request));
  Node* node = &root->node();
  while (node->filtered_child() != nullptr) node = &node->filtered_child()->node();
  if (config_.on_open) config_.on_open(node->driver());
  std::string problem;
  {
    Workload workload(*root, model, clock, std::move(options));
    TaskScope beside;
    bool ended = false;
    if (config_.beside) beside.spawn(config_.beside(graph_, *node, ended));
    co_await workload.run();
    ended = true;
    problem = workload.problem();
    try {
      co_await beside.join();
    } catch (const Error& error) {
      if (problem.empty() && !errors_expected) problem = fmt::format("beside: {}", error.what());
    }
  }
  try {
    co_await root->detach();
  } catch (const Error& error) {
    if (problem.empty() && !errors_expected) problem = fmt::format("close: {}", error.what());
  }
  co_return problem;
}

std::string Rig::examine(const Image& image, const Model& model, std::uint64_t time) {
  Clock clock;
  Disk disk(clock, image, {.alignment = config_.disk_alignment});
  disk_type_.disk = &disk;
  ++states_;
  try {
    std::string problem = context_.loop().run(check_metadata());
    if (problem.empty()) problem = context_.loop().run(examine_content(model, time));
    const bool written = std::any_of(disk.log().begin(), disk.log().end(), [](const HostEvent& e) {
      return e.kind != HostEvent::Kind::flush;
    });
    if (problem.empty() && written) problem = "a read-only node has written";
    return problem;
  } catch (const Error& error) {
    return error.what();
  }
}

Task<std::unique_ptr<Child>> Rig::open(OpenPurpose purpose) {
  OpenRequest request;
  request.options = open_options(false);
  request.defaults.read_only = true;
  request.defaults.purpose = purpose;
  return graph_.open_root(std::move(request));
}

Task<std::string> Rig::check_metadata() {
  std::unique_ptr<Child> root = co_await open(OpenPurpose::check);
  std::string findings;
  CheckResult result;
  std::exception_ptr failure;
  if (auto* checkable = dynamic_cast<Checkable*>(&root->node().driver())) {
    CheckRequest request;
    request.on_finding = [&findings](const std::string& finding) { findings += finding + "\n"; };
    try {
      result = co_await checkable->check(std::move(request));
    } catch (...) {
      failure = std::current_exception();
    }
  }
  co_await root->detach();
  if (failure) std::rethrow_exception(failure);
  if (result.corruptions == 0 && result.check_errors == 0) co_return std::string();
  co_return fmt::format("check: {} corruptions, {} errors, {} leaks\n{}", result.corruptions,
                        result.check_errors, result.leaks, findings);
}

Task<std::string> Rig::examine_content(const Model& model, std::uint64_t time) {
  std::unique_ptr<Child> root = co_await open(OpenPurpose::io);
  std::string problem;
  try {
    problem = co_await compare_content(*root, model, time);
  } catch (const Error& error) {
    problem = fmt::format("reading: {}", error.what());
  }
  co_await root->detach();
  co_return problem;
}

Task<std::string> Rig::compare_content(Child& root, const Model& model, std::uint64_t time) {
  for (const GuestRange& window : windows_) {
    Buffer buffer(window.length);
    co_await root.read(window.start, IoVec(buffer.span()));
    std::string problem = model.compare(window.start.bytes(), buffer, time);
    if (!problem.empty()) co_return problem;
  }
  co_return std::string();
}

WorkloadOptions Rig::workload_options(std::uint64_t seed, unsigned requests) const {
  WorkloadOptions options;
  options.seed = seed;
  options.requests = requests;
  options.cluster_size = config_.cluster_size;
  options.windows = windows_;
  options.compressed_writes = config_.compress_mode.empty() && config_.format != "raw";
  return options;
}

std::string Rig::report(const std::string& problem, std::uint64_t seed, const Image& image) const {
  std::string saved;
  if (!settings_.keep.empty()) {
    saved = fmt::format("{}/{}-{}.{}", settings_.keep, config_.name, seed, config_.format);
    image.save(saved);
    saved = fmt::format("\nThe image is in {}", saved);
  }
  return fmt::format("{}: {}\nAgain: VISE_CRASH_SEED={} VISE_CRASH_RUNS=1{}", config_.name, problem,
                     seed, saved);
}

std::string Rig::crash_and_examine(std::uint64_t seed, unsigned requests, Effort effort) {
  const Image start = create();
  Clock clock;
  Model model(clock, size_);
  Disk disk(clock, start,
            {.seed = seed,
             .usual_delay = 6,
             .alignment = config_.disk_alignment,
             .forget_flushes = config_.forget_flushes});
  std::string problem = run_guest(disk, model, clock, workload_options(seed, requests));
  if (problem.empty()) problem = examine(disk.image(), model, never);
  if (!problem.empty()) return report(problem, seed, disk.image());

  std::mt19937_64 random(seed);
  const auto examine_state = [&](const State& state) {
    std::string wrong = examine(state.image, model, state.time);
    if (wrong.empty() && random() % states_per_resumption == 0) {
      wrong = resume_and_examine(state, model, random());
    }
    if (wrong.empty()) return true;
    problem = report(fmt::format("{}: {}", state.description, wrong), seed, state.image);
    return false;
  };
  for_each_state(start, disk.log(), clock.now(), effort, random, examine_state);
  return problem;
}

std::string Rig::resume_and_examine(const State& state, const Model& before, std::uint64_t seed) {
  Clock clock;
  Model model(clock, size_);
  Disk disk(clock, state.image,
            {.seed = seed, .usual_delay = 3, .alignment = config_.disk_alignment});
  disk_type_.disk = &disk;
  context_.loop().run(take_over_content(model, before, state.time));
  std::string problem = run_guest(disk, model, clock, workload_options(seed, 30));
  if (problem.empty()) problem = examine(disk.image(), model, never);
  if (!problem.empty()) return "going on after that: " + problem;
  std::mt19937_64 random(seed);
  for_each_state(state.image, disk.log(), clock.now(), {1, 2}, random, [&](const State& second) {
    problem = examine(second.image, model, second.time);
    if (!problem.empty()) {
      problem = fmt::format("going on after that: second {}: {}", second.description, problem);
    }
    return problem.empty();
  });
  return problem;
}

Task<void> Rig::take_over_content(Model& model, const Model& before, std::uint64_t time) {
  std::unique_ptr<Child> root = co_await open(OpenPurpose::io);
  for (const GuestRange& window : windows_) {
    Buffer buffer(window.length);
    co_await root->read(window.start, IoVec(buffer.span()));
    model.resume(before, window.start.bytes(), buffer, time);
  }
  co_await root->detach();
}

std::string Rig::fail_each(Disk::Fault fault, std::uint64_t seed, unsigned requests) {
  const Image start = create();
  for (fault.number = 1;; ++fault.number) {
    Clock clock;
    Model model(clock, size_);
    Disk disk(clock, start, {.seed = seed, .usual_delay = 3, .alignment = config_.disk_alignment});
    disk.set_fault(fault);
    WorkloadOptions options = workload_options(seed, requests);
    options.errors_expected = true;
    std::string problem = run_guest(disk, model, clock, std::move(options));
    // What was flushed is there; what was not may have failed to get there. As the disk is now, and
    // then if the power fails as well.
    if (problem.empty()) problem = examine(disk.image(), model, clock.tick());
    if (problem.empty()) {
      std::mt19937_64 random(seed + fault.number);
      const Effort effort{.subsets_per_moment = 3, .at_the_end_only = true};
      for_each_state(start, disk.log(), clock.now(), effort, random, [&](const State& state) {
        problem = examine(state.image, model, state.time);
        if (!problem.empty()) problem = fmt::format("{}: {}", state.description, problem);
        return problem.empty();
      });
    }
    if (!problem.empty()) {
      return report(fmt::format("{} {} fails: {}",
                                fault.target == Disk::Fault::Target::write ? "write" : "flush",
                                fault.number, problem),
                    seed, disk.image());
    }
    if (!disk.fault_happened()) return {};
  }
}

}  // namespace vise::crash
