// vise-img check.
#include <fmt/format.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <vector>

#include "qapi/qapi-types.h"
#include "tools/common/key_order.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "util/json.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'r', "repair", "leaks|all", "repair what is found: leaked clusters only, or everything"},
    {key::data, "data", nullptr, "decode every compressed cluster, and say which are damaged"},
    shared::progress,
    shared::output,
    shared::format,
    shared::image_opts,
    shared::source_cache,
    shared::force_share,
    {'q', "quiet", nullptr, "print nothing but findings and errors"},
    shared::object,
    shared::help,
};

enum ExitCode { consistent = 0, failed = 1, corrupt = 2, leaking = 3, unsupported = 63 };

struct Request {
  ImageArguments image;
  Repair repair = Repair::none;
  OutputFormat output = OutputFormat::human;
  bool data = false;
  bool quiet = false;
};

struct Findings {
  CheckResult result;
  std::vector<DamagedCluster> damaged;
};

std::string repaired_text(const CheckResult& result) {
  if (result.leaks_fixed == 0 && result.corruptions_fixed == 0) return {};
  return fmt::format(
      "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n"
      "    {} corruptions\n\nDouble checking the fixed image now...\n",
      result.leaks_fixed, result.corruptions_fixed);
}

std::string human_text(const CheckResult& result) {
  std::string text = repaired_text(result);
  const bool damaged = result.data && result.data->damaged > 0;
  if (result.corruptions == 0 && result.leaks == 0 && result.check_errors == 0 && !damaged) {
    text += "No errors were found on the image.\n";
  }
  if (result.corruptions > 0) {
    text += fmt::format(
        "\n{} errors were found on the image.\n"
        "Data may be corrupted, or further writes to the image may corrupt it.\n",
        result.corruptions);
  }
  if (result.leaks > 0) {
    text += fmt::format(
        "\n{} leaked clusters were found on the image.\n"
        "This means waste of disk space, but no harm to data.\n",
        result.leaks);
  }
  if (damaged) {
    text += fmt::format(
        "\n{} compressed clusters are damaged.\n"
        "What they held is lost, unless a backup has it.\n",
        result.data->damaged);
  }
  if (result.check_errors > 0) {
    text +=
        fmt::format("\n{} internal errors have occurred during the check.\n", result.check_errors);
  }
  const auto percent = [](std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
  };
  if (result.allocated_clusters > 0) {
    text +=
        fmt::format("{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n",
                    result.allocated_clusters, result.total_clusters,
                    percent(result.allocated_clusters, result.total_clusters),
                    percent(result.fragmented_clusters, result.allocated_clusters),
                    percent(result.compressed_clusters, result.allocated_clusters));
  }
  if (result.data) {
    text += fmt::format("{} compressed clusters decoded, {} of them with a checksum\n",
                        result.data->clusters, result.data->with_checksum);
  }
  if (result.image_end_offset > 0) {
    text += fmt::format("Image end offset: {}\n", result.image_end_offset);
  }
  return text;
}

qapi::ImageCheckData data_values(const DataCheckResult& data,
                                 const std::vector<DamagedCluster>& damaged) {
  qapi::ImageCheckData values;
  values.clusters = static_cast<std::int64_t>(data.clusters);
  values.with_checksum = static_cast<std::int64_t>(data.with_checksum);
  values.damaged = static_cast<std::int64_t>(data.damaged);
  for (const DamagedCluster& cluster : damaged) {
    qapi::DamagedCluster entry;
    entry.guest_offset = static_cast<std::int64_t>(cluster.guest_offset);
    entry.host_offset = static_cast<std::int64_t>(cluster.host_offset);
    entry.stored_length = static_cast<std::int64_t>(cluster.stored_length);
    entry.in_snapshot = cluster.in_snapshot;
    values.damaged_clusters.push_back(entry);
  }
  return values;
}

std::string json_text(const Findings& findings, const Request& request, std::string_view format) {
  const CheckResult& result = findings.result;
  const auto unless_zero = [](std::uint64_t count) {
    return count > 0 ? std::optional(static_cast<std::int64_t>(count)) : std::nullopt;
  };
  qapi::ImageCheck check;
  check.filename = request.image.filename;
  check.format = format;
  check.check_errors = static_cast<std::int64_t>(result.check_errors);
  check.image_end_offset = unless_zero(result.image_end_offset);
  check.corruptions = unless_zero(result.corruptions);
  check.leaks = unless_zero(result.leaks);
  check.corruptions_fixed = unless_zero(result.corruptions_fixed);
  check.leaks_fixed = unless_zero(result.leaks_fixed);
  check.total_clusters = unless_zero(result.total_clusters);
  check.allocated_clusters = unless_zero(result.allocated_clusters);
  check.fragmented_clusters = unless_zero(result.fragmented_clusters);
  check.compressed_clusters = unless_zero(result.compressed_clusters);
  if (result.data) check.data = data_values(*result.data, findings.damaged);
  return json::print(in_printing_order(to_value(check))) + "\n";
}

Task<int> check(ImageSession& session, const Request& request, LongWork& work) {
  Child* root = co_await session.open(request.image);
  Node& node = root->node();
  auto* checkable = dynamic_cast<Checkable*>(&node.driver());
  if (checkable == nullptr) {
    print_error(session.program(), "This image format does not support checks");
    co_return unsupported;
  }
  Progress& progress = work.progress();
  progress.start();
  Findings findings;
  CheckRequest check;
  check.repair = request.repair;
  check.on_finding = [](const std::string& line) { fmt::print(stderr, "{}\n", line); };
  check.data = request.data;
  check.on_damaged = [&findings](const DamagedCluster& cluster) {
    findings.damaged.push_back(cluster);
  };
  check.on_progress = [&progress](double fraction) { progress.set(fraction); };
  findings.result = co_await checkable->check(std::move(check)).context("The check failed");
  progress.complete();
  progress.end();
  const CheckResult& result = findings.result;
  if (request.data && !result.data) {
    print_error(session.program(), "This image format has no compressed clusters to check");
    co_return unsupported;
  }
  if (!request.quiet) {
    print(request.output == OutputFormat::json ? json_text(findings, request, node.type().name)
                                               : human_text(result));
  }
  const bool damaged = result.data && result.data->damaged > 0;
  if ((result.corruptions > 0 || damaged) && result.check_errors == 0) co_return corrupt;
  if (result.check_errors > 0) {
    print_error(session.program(), "Not all of the image could be checked");
    co_return failed;
  }
  co_return result.leaks > 0 ? leaking : consistent;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 1, 1, "an image file name");
  Request request;
  request.image = image_argument(arguments);
  request.image.cache = cache_argument(arguments, 'T');
  request.image.purpose = OpenPurpose::check;
  request.output = output_format(arguments);
  request.quiet = arguments.has('q');
  request.data = arguments.has(key::data);
  if (const std::string* repair = arguments.last('r')) {
    if (*repair != "leaks" && *repair != "all") {
      throw Error(EINVAL, fmt::format("-r (--repair) must be leaks or all, not '{}'", *repair));
    }
    request.repair = *repair == "all" ? Repair::all : Repair::leaks;
    request.image.read_only = false;
    if (request.image.force_share) {
      throw Error(EINVAL, "-U (--force-share) cannot be used when repairing");
    }
  }
  return run_long_session(program, arguments, LongWork::OnInterrupt::die, check, request);
}

}  // namespace

constexpr Subcommand check_command = {
    "check", "FILE", "examines an image's metadata and, if asked, its data", options, run};

}  // namespace vise::tools
