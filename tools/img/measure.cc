// vise-img measure.
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "qapi/qapi-types.h"
#include "tools/common/creation.h"
#include "tools/common/key_order.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/command.h"
#include "tools/img/estimate.h"
#include "util/json.h"
#include "util/keyval.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/image_operations.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'s', "size", "SIZE", "measure an empty image of that size"},
    {'O', "target-format", "FORMAT", "format of the new image, raw if not given"},
    {'o', "options", "OPTIONS", "its creation options, key=value,…"},
    {'l', "snapshot", "SNAPSHOT", "measure what a snapshot holds"},
    {'c', "compress", nullptr, "estimate the size of a compressed image by compressing a sample"},
    {key::level, "level", "LEVEL",
     "with -c: of compression: 1 (fast) to 12 (zlib) or 19 (zstd), or fastest"},
    shared::output,
    shared::format,
    shared::image_opts,
    shared::force_share,
    shared::object,
    shared::help,
};

struct Request {
  std::optional<ImageArguments> image;
  std::optional<SnapshotSelector> snapshot;
  std::uint64_t size = 0;
  std::string target_format;
  std::vector<std::string> option_lists;
  OutputFormat output = OutputFormat::human;
  bool compressed = false;
  int level = codec::default_level;
};

using Estimate = std::optional<CompressedEstimate>;

std::string human_text(const MeasureResult& result, const Estimate& estimate) {
  std::string text = fmt::format("required size: {}\nfully allocated size: {}\n", result.required,
                                 result.fully_allocated);
  if (result.bitmaps) text += fmt::format("bitmaps size: {}\n", *result.bitmaps);
  if (!estimate) return text;
  return text +
         fmt::format("compressed size: {}\ncompressed size error: {}\nsampled clusters: {}/{}\n",
                     estimate->size, estimate->error, estimate->sampled_clusters,
                     estimate->data_clusters);
}

std::string json_text(const MeasureResult& result, const Estimate& estimate) {
  qapi::BlockMeasureInfo info;
  info.required = static_cast<std::int64_t>(result.required);
  info.fully_allocated = static_cast<std::int64_t>(result.fully_allocated);
  if (result.bitmaps) info.bitmaps = static_cast<std::int64_t>(*result.bitmaps);
  Value value = to_value(info);
  if (estimate) {
    Value::Dict& members = value.as_dict();
    members.set("compressed-size", estimate->size);
    members.set("compressed-size-error", estimate->error);
    members.set("sampled-clusters", estimate->sampled_clusters);
    members.set("data-clusters", estimate->data_clusters);
  }
  return json::print(in_printing_order(std::move(value))) + "\n";
}

Task<int> measure(ImageSession& session, const Request& request) {
  const CreationTypes types =
      creation_types(session.context().drivers(), request.target_format, std::nullopt);
  if (types.format->measure == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' cannot be measured", request.target_format));
  }
  if (request.compressed && types.format->name != "qcow2") {
    throw Error(ENOTSUP, fmt::format("Only compressed qcow2 images can be measured, not '{}'",
                                     request.target_format));
  }
  MeasureRequest measured;
  measured.size = request.size;
  measured.options = parse_creation_options(types, request.option_lists);
  Child* root = nullptr;
  if (request.image) {
    root = co_await session.open(*request.image);
    if (request.snapshot) co_await view_snapshot(*root, *request.snapshot);
    measured.source = &root->node();
    measured.size = root->size();
  }
  const MeasureResult result = co_await types.format->measure(measured);
  Estimate estimate;
  if (root != nullptr && request.compressed) {
    estimate = co_await estimate_compressed(*root, measured.options, request.level);
  }
  print(request.output == OutputFormat::json ? json_text(result, estimate)
                                             : human_text(result, estimate));
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  expect_operands(arguments, 0, 1, "an image file name");
  const bool has_file = !arguments.operands.empty();
  const std::string* size = arguments.last('s');
  if (has_file == (size != nullptr)) {
    throw UsageError("Either --size or one image file name must be given");
  }
  const bool file_options =
      arguments.has('f') || arguments.has('l') || arguments.has(key::image_opts);
  if (!has_file && file_options) {
    throw UsageError("-f, -l and --image-opts need an image file name");
  }
  if (!has_file && arguments.has('c')) throw UsageError("-c (--compress) needs an image file name");
  if (arguments.has(key::level) && !arguments.has('c')) {
    throw UsageError("--level needs -c (--compress)");
  }
  Request request;
  request.compressed = arguments.has('c');
  if (const std::string* text = arguments.last(key::level)) request.level = level_argument(*text);
  if (has_file) {
    request.image = image_argument(arguments);
    if (const std::string* text = arguments.last('l')) request.snapshot = snapshot_selector(*text);
  } else {
    request.size = size_argument(*size, "image size");
  }
  request.target_format = arguments.value_or('O', "raw");
  request.option_lists = option_lists(arguments);
  request.output = output_format(arguments);
  return run_session(program, arguments, measure, request);
}

}  // namespace

constexpr Subcommand measure_command = {"measure", "[FILE]", "tells how large a new image would be",
                                        options, run};

}  // namespace vise::tools
