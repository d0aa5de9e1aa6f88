// Jobs: starting and steering them.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <ranges>
#include <system_error>
#include <utility>

#include "graph/chain.h"
#include "graph/image_info.h"
#include "job/backup.h"
#include "job/commit.h"
#include "job/compress.h"
#include "job/create.h"
#include "job/job_table.h"
#include "job/mirror.h"
#include "job/stream.h"
#include "monitor/commands.h"
#include "monitor/job_settings.h"
#include "monitor/services.h"
#include "vise/error.h"

namespace vise {

std::uint64_t speed_argument(std::int64_t speed) {
  if (speed >= 0) return static_cast<std::uint64_t>(speed);
  throw Error(EINVAL, fmt::format("Parameter 'speed' expects a value from 0 to {}, not {}",
                                  INT64_MAX, speed));
}

Node& get_device(Services& services, const std::string& name) {
  Node* const node = services.graph().find(name);
  if (node != nullptr) return *node;
  throw Error(ENOENT, fmt::format("Cannot find device='{0}' nor node-name='{0}'", name));
}

namespace {

void start(Services& services, std::shared_ptr<Job> job) {
  services.jobs().add(job);
  services.jobs().start(std::move(job));
}

template <class Arguments>
StoredFormat stored_format(const Arguments& arguments) {
  return arguments.backing_mask_protocol.value_or(false) ? StoredFormat::protocol_as_raw
                                                         : StoredFormat::as_driver;
}

// --- stream -------------------------------------------------------------------------------------

// The image of the chain below `overlay` that `matches`.
template <class Matches>
Node* find_below(Node& overlay, Matches matches) {
  for (Node* node = backing_of(overlay); node != nullptr; node = backing_of(*node)) {
    for (Node* part = node;;) {
      if (matches(*part)) return part;
      const Child* below = part->filtered_child();
      if (below == nullptr) break;
      part = &below->node();
    }
  }
  return nullptr;
}

bool has_file_name(const Node& node, const std::string& name) {
  if (node.filename() == name || node.protocol_filename() == name) return true;
  std::error_code unknown;
  return std::filesystem::equivalent(node.protocol_filename(), name, unknown);
}

// The image of the chain below `overlay` whose file has that name, or is called so by the image
// above it. Null if there is none.
Task<Node*> find_file_below(Node& overlay, const std::string& name) {
  Node* const found =
      find_below(overlay, [&](const Node& node) { return has_file_name(node, name); });
  if (found != nullptr) co_return found;
  for (Node* above = &overlay; Node* below = backing_of(*above); above = below) {
    const DriverInfo info = co_await image_of(*above).driver().info();
    if (info.backing_filename == name) co_return below;
  }
  co_return nullptr;
}

Error not_in_chain(const std::string& name) {
  return Error(ENOENT, fmt::format("Can't find '{}' in the backing chain", name));
}

Task<Node*> find_base(Services& services, Node& overlay,
                      const qapi::BlockStreamArguments& arguments) {
  const int given = int{arguments.base.has_value()} + int{arguments.base_node.has_value()} +
                    int{arguments.bottom.has_value()};
  if (given > 1) {
    throw Error(EINVAL, "Only one of 'base', 'base-node' and 'bottom' can be given");
  }
  if (given == 0) {
    if (arguments.backing_file) {
      throw Error(EINVAL, "backing file specified, but streaming the entire chain");
    }
    co_return nullptr;
  }
  if (arguments.base) {
    Node* const base = co_await find_file_below(overlay, *arguments.base);
    if (base != nullptr) co_return base;
    throw not_in_chain(*arguments.base);
  }
  const std::string& name = arguments.base_node ? *arguments.base_node : *arguments.bottom;
  Node& named = get_device(services, name);
  const bool is_top = arguments.bottom && &named == &overlay;
  if (!is_top && find_below(overlay, [&](Node& node) { return &node == &named; }) == nullptr) {
    throw Error(EINVAL,
                fmt::format("Node '{}' is not a backing image of '{}'", name, overlay.name()));
  }
  if (arguments.base_node) co_return &named;
  if (named.type().kind == DriverKind::filter) {
    throw Error(EINVAL,
                fmt::format("Node '{}' is a filter, use a non-filter node as 'bottom'", name));
  }
  co_return backing_of(named);
}

Task<void> block_stream(Services& services, qapi::BlockStreamArguments arguments) {
  StreamSettings settings;
  settings.job = job_settings(services, arguments);
  settings.job.on_source_error = arguments.on_error.value_or(qapi::BlockdevOnError::report);
  settings.job.on_target_error = settings.job.on_source_error;
  settings.device = &get_device(services, arguments.device);
  Node* const base = co_await find_base(services, image_of(*settings.device), arguments);
  settings.base = base;
  settings.backing_file = arguments.backing_file;
  settings.backing_format = stored_format(arguments);
  settings.filter_node_name = arguments.filter_node_name;
  std::shared_ptr<Job> job = co_await make_stream_job(services.jobs(), std::move(settings));
  start(services, std::move(job));
}

// --- commit, mirror -----------------------------------------------------------------------------

Task<void> commit_below(Services& services, const qapi::BlockCommitArguments& arguments,
                        JobSettings job, Node& top, Node& base) {
  CommitSettings settings;
  settings.job = std::move(job);
  settings.top = &top;
  settings.base = &base;
  settings.backing_file = arguments.backing_file;
  settings.backing_format = stored_format(arguments);
  settings.filter_node_name = arguments.filter_node_name;
  std::shared_ptr<Job> made = co_await make_commit_job(services.jobs(), std::move(settings));
  start(services, std::move(made));
}

Task<void> commit_active(Services& services, const qapi::BlockCommitArguments& arguments,
                         JobSettings job, Node& top, Node& base) {
  if (arguments.backing_file) {
    throw Error(EINVAL, "'backing-file' specified, but 'top' is the active layer");
  }
  MirrorSettings settings;
  settings.job = std::move(job);
  settings.device = &top;
  settings.target = &base;
  settings.purpose = MirrorSettings::Purpose::commit;
  settings.filter_node_name = arguments.filter_node_name;
  std::shared_ptr<Job> made = co_await make_mirror_job(services.jobs(), std::move(settings));
  start(services, std::move(made));
}

Task<Node*> find_top(Services& services, Node& device,
                     const qapi::BlockCommitArguments& arguments) {
  if (arguments.top_node) co_return &get_device(services, *arguments.top_node);
  if (!arguments.top || has_file_name(image_of(device), *arguments.top)) co_return &device;
  Node* const found = co_await find_file_below(device, *arguments.top);
  if (found == nullptr) {
    throw Error(ENOENT, fmt::format("Top image file {} not found", *arguments.top));
  }
  co_return found;
}

void require_one_name(const qapi::BlockCommitArguments& arguments) {
  if (arguments.base && arguments.base_node) {
    throw Error(EINVAL, "'base-node' and 'base' are mutually exclusive");
  }
  if (arguments.top && arguments.top_node) {
    throw Error(EINVAL, "'top-node' and 'top' are mutually exclusive");
  }
}

Task<void> block_commit(Services& services, qapi::BlockCommitArguments arguments) {
  Node* const device = services.graph().find(arguments.device);
  if (device == nullptr) {
    throw QmpError(ENOENT, "DeviceNotFound",
                   fmt::format("Cannot find device='{0}' nor node-name='{0}'", arguments.device));
  }
  JobSettings job = job_settings(services, arguments);
  require_one_name(arguments);
  job.on_source_error = arguments.on_error.value_or(qapi::BlockdevOnError::report);
  job.on_target_error = job.on_source_error;
  Node* const named_top = co_await find_top(services, *device, arguments);
  Node& top = *named_top;
  const auto is = [](const Node& wanted) {
    return [&wanted](const Node& node) { return &node == &wanted; };
  };
  const bool active = &image_of(top) == &image_of(*device);
  if (!active && find_below(*device, is(top)) == nullptr) {
    throw Error(EINVAL, fmt::format("'{}' is not in this backing file chain", top.name()));
  }
  Node* base = nullptr;
  if (arguments.base) {
    Node* const found = co_await find_file_below(top, *arguments.base);
    if (found == nullptr) throw not_in_chain(*arguments.base);
    base = found;
  } else if (arguments.base_node) {
    Node& named = get_device(services, *arguments.base_node);
    base = find_below(top, is(named));
    if (base == nullptr) {
      throw Error(EINVAL, fmt::format("'{}' is not in this backing file chain", named.name()));
    }
  } else {
    for (Node* node = backing_of(top); node != nullptr; node = backing_of(*node)) base = node;
    if (base == nullptr) throw Error(EINVAL, "There is no backing image to commit to");
  }
  if (active) {
    co_await commit_active(services, arguments, std::move(job), *device, *base);
  } else {
    co_await commit_below(services, arguments, std::move(job), top, *base);
  }
}

Task<void> blockdev_mirror(Services& services, qapi::BlockdevMirrorArguments arguments) {
  MirrorSettings settings;
  settings.job = job_settings(services, arguments);
  using OnError = qapi::BlockdevOnError;
  settings.job.on_source_error = arguments.on_source_error.value_or(OnError::report);
  settings.job.on_target_error = arguments.on_target_error.value_or(OnError::report);
  settings.device = &get_device(services, arguments.device);
  settings.target = &get_device(services, arguments.target);
  settings.sync = arguments.sync;
  settings.copy_mode = arguments.copy_mode.value_or(qapi::MirrorCopyMode::background);
  if (arguments.granularity) settings.granularity = *arguments.granularity;
  settings.may_unmap = arguments.unmap.value_or(true);
  if (arguments.replaces) settings.replaces = &get_node(services, *arguments.replaces);
  if (arguments.buf_size.value_or(0) < 0) {
    throw Error(EINVAL, fmt::format("Invalid parameter 'buf-size': expected is a value from 0 to "
                                    "{}, not {}",
                                    INT64_MAX, *arguments.buf_size));
  }
  settings.buffer_size = static_cast<std::uint64_t>(arguments.buf_size.value_or(0));
  settings.filter_node_name = arguments.filter_node_name;
  std::shared_ptr<Job> job = co_await make_mirror_job(services.jobs(), std::move(settings));
  start(services, std::move(job));
}

// --- others -------------------------------------------------------------------------------------

Task<void> blockdev_backup(Services& services, qapi::BlockdevBackup arguments) {
  BackupSettings settings = backup_settings(services, arguments);
  std::shared_ptr<Job> job = co_await make_backup_job(services.jobs(), std::move(settings));
  start(services, std::move(job));
}

Task<void> blockdev_compress(Services& services, qapi::BlockdevCompressArguments arguments) {
  CompressSettings settings;
  settings.job = job_settings(services, arguments);
  settings.job.on_target_error = arguments.on_error.value_or(qapi::BlockdevOnError::report);
  settings.device = &get_device(services, arguments.device);
  settings.options.level = arguments.level.value_or(0);
  settings.options.compact = arguments.compact.value_or(false);
  std::shared_ptr<Job> job = co_await make_compress_job(services.jobs(), std::move(settings));
  start(services, std::move(job));
}

Task<Value> blockdev_create(Services& services, Value arguments) {
  qapi::BlockdevCreateArguments typed;
  read(ValueReader(arguments, ValueInput::json), typed);
  services.jobs().require_new_id(typed.job_id);
  Value::Dict options = arguments.as_dict().find("options")->as_dict();
  start(services,
        make_create_job(services.jobs(), services.graph(), typed.job_id, std::move(options)));
  co_return Value(Value::Dict());
}

// --- questions ----------------------------------------------------------------------------------

Task<std::vector<qapi::JobInfo>> query_jobs(Services& services) {
  std::vector<qapi::JobInfo> result;
  for (const auto& job : std::views::reverse(services.jobs().jobs())) {
    qapi::JobInfo info;
    info.id = job->id();
    info.type = job->type();
    info.status = job->status();
    info.current_progress = static_cast<std::int64_t>(job->done());
    info.total_progress = static_cast<std::int64_t>(job->total());
    if (!job->error().empty()) info.error = job->error();
    result.push_back(std::move(info));
  }
  co_return result;
}

Task<std::vector<qapi::BlockJobInfo>> query_block_jobs(Services& services) {
  std::vector<qapi::BlockJobInfo> result;
  for (const auto& job : std::views::reverse(services.jobs().jobs())) {
    if (!job->is_block_job()) continue;
    qapi::BlockJobInfo info;
    info.type = job->type();
    info.device = job->id();
    info.len = static_cast<std::int64_t>(job->total());
    info.offset = static_cast<std::int64_t>(job->done());
    info.busy = job->status() == Job::Status::running;
    info.paused = job->is_paused();
    info.speed = static_cast<std::int64_t>(job->settings().speed);
    info.io_status = job->io_status();
    info.ready = job->is_ready();
    info.status = job->status();
    info.auto_finalize = job->settings().auto_finalize;
    info.auto_dismiss = job->settings().auto_dismiss;
    if (!job->error().empty()) info.error = job->error();
    job->describe(info);
    result.push_back(std::move(info));
  }
  co_return result;
}

// --- verbs --------------------------------------------------------------------------------------

Job& get_job(Services& services, const std::string& id) {
  const std::shared_ptr<Job> job = services.jobs().find(id);
  if (job == nullptr) throw Error(ENOENT, "Job not found");
  return *job;
}

Job& get_block_job(Services& services, const std::string& id) {
  const std::shared_ptr<Job> job = services.jobs().find(id);
  if (job != nullptr && job->is_block_job()) return *job;
  throw QmpError(ENOENT, "DeviceNotActive", fmt::format("Block job '{}' not found", id));
}

template <class Arguments, void (Job::*verb)()>
Task<void> job_verb(Services& services, Arguments arguments) {
  (get_job(services, arguments.id).*verb)();
  co_return;
}

template <class Arguments, void (Job::*verb)()>
Task<void> block_job_verb(Services& services, Arguments arguments) {
  if constexpr (requires { arguments.device; }) {
    (get_block_job(services, arguments.device).*verb)();
  } else {
    (get_block_job(services, arguments.id).*verb)();
  }
  co_return;
}

Task<void> job_cancel(Services& services, qapi::JobCancelArguments arguments) {
  get_job(services, arguments.id).cancel(Job::Cancel::force);
  co_return;
}

Task<void> block_job_cancel(Services& services, qapi::BlockJobCancelArguments arguments) {
  const bool force = arguments.force.value_or(false);
  get_block_job(services, arguments.device).cancel(force ? Job::Cancel::force : Job::Cancel::soft);
  co_return;
}

Task<void> block_job_change(Services& services, qapi::JobChangeOptions options) {
  get_block_job(services, options.id).change(options);
  co_return;
}

Task<void> block_job_set_speed(Services& services, qapi::BlockJobSetSpeedArguments arguments) {
  get_block_job(services, arguments.device).set_speed(speed_argument(arguments.speed));
  co_return;
}

}  // namespace

namespace {

void take_perf(const qapi::BackupPerf& perf, BackupSettings& settings) {
  if (perf.use_copy_range.value_or(false)) {
    throw Error(ENOTSUP,
                "Parameter 'x-perf.use-copy-range' must be false: jobs copy through memory");
  }
  const auto refuse = [](const char* name, const char* range, std::int64_t value) {
    throw Error(EINVAL,
                fmt::format("Parameter 'x-perf.{}' expects {}, not {}", name, range, value));
  };
  if (perf.max_workers) {
    constexpr std::int64_t highest = INT32_MAX;
    if (*perf.max_workers < 1 || *perf.max_workers > highest) {
      refuse("max-workers", "a value from 1 to 2147483647", *perf.max_workers);
    }
    constexpr std::int64_t most = 64;  // so that memory is bounded
    settings.most_in_flight = static_cast<unsigned>(std::min(*perf.max_workers, most));
  }
  if (perf.max_chunk.value_or(0) < 0) {
    refuse("max-chunk", "a value from 0, which means no limit", *perf.max_chunk);
  }
  settings.most_at_once = static_cast<std::uint64_t>(perf.max_chunk.value_or(0));
  settings.least_unit = perf.min_cluster_size.value_or(0);
  if (settings.least_unit > 0 &&
      (!std::has_single_bit(settings.least_unit) || settings.least_unit > 1u << 30)) {
    throw Error(EINVAL,
                fmt::format("Parameter 'x-perf.min-cluster-size' expects 0 or a power of two "
                            "up to 1073741824, not {}",
                            settings.least_unit));
  }
}

}  // namespace

BackupSettings backup_settings(Services& services, const qapi::BlockdevBackup& arguments) {
  BackupSettings settings;
  settings.job = job_settings(services, arguments);
  using OnError = qapi::BlockdevOnError;
  settings.job.on_source_error = arguments.on_source_error.value_or(OnError::report);
  settings.job.on_target_error = arguments.on_target_error.value_or(OnError::report);
  settings.device = &get_device(services, arguments.device);
  settings.target = &get_device(services, arguments.target);
  settings.sync = arguments.sync;
  settings.bitmap = arguments.bitmap;
  settings.bitmap_mode = arguments.bitmap_mode;
  settings.compress = arguments.compress.value_or(false);
  settings.discard_source = arguments.discard_source.value_or(false);
  if (arguments.x_perf) take_perf(*arguments.x_perf, settings);
  settings.filter_node_name = arguments.filter_node_name;
  return settings;
}

void add_job_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::block_stream, block_stream>();
  commands.add<command::block_commit, block_commit>();
  commands.add<command::blockdev_mirror, blockdev_mirror>();
  commands.add<command::blockdev_backup, blockdev_backup>();
  commands.add<command::blockdev_compress, blockdev_compress>();
  commands.add(command::blockdev_create::name, blockdev_create);
  commands.add<command::query_jobs, query_jobs>();
  commands.add<command::query_block_jobs, query_block_jobs>();
  commands.add<command::job_pause, job_verb<qapi::JobPauseArguments, &Job::pause>>();
  commands.add<command::job_resume, job_verb<qapi::JobResumeArguments, &Job::resume>>();
  commands.add<command::job_complete, job_verb<qapi::JobCompleteArguments, &Job::complete>>();
  commands.add<command::job_finalize, job_verb<qapi::JobFinalizeArguments, &Job::finalize>>();
  commands.add<command::job_dismiss, job_verb<qapi::JobDismissArguments, &Job::dismiss>>();
  commands.add<command::job_cancel, job_cancel>();
  commands
      .add<command::block_job_pause, block_job_verb<qapi::BlockJobPauseArguments, &Job::pause>>();
  commands.add<command::block_job_resume,
               block_job_verb<qapi::BlockJobResumeArguments, &Job::resume>>();
  commands.add<command::block_job_complete,
               block_job_verb<qapi::BlockJobCompleteArguments, &Job::complete>>();
  commands.add<command::block_job_finalize,
               block_job_verb<qapi::BlockJobFinalizeArguments, &Job::finalize>>();
  commands.add<command::block_job_dismiss,
               block_job_verb<qapi::BlockJobDismissArguments, &Job::dismiss>>();
  commands.add<command::block_job_cancel, block_job_cancel>();
  commands.add<command::block_job_change, block_job_change>();
  commands.add<command::block_job_set_speed, block_job_set_speed>();
}

}  // namespace vise
