// vise-img convert.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "codec/codec.h"
#include "copy/copy.h"
#include "graph/chain.h"
#include "graph/file_names.h"
#include "tools/common/creation.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/common/snapshots.h"
#include "tools/img/command.h"
#include "tools/img/convert_bitmaps.h"
#include "util/keyval.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'f', "source-format", "FORMAT", "format of the sources; else it is found out"},
    {key::image_opts, "image-opts", nullptr, "the sources are option strings, key=value,…"},
    {key::source_image_opts, "source-image-opts", nullptr, "the same"},
    {'l', "snapshot", "SNAPSHOT", "convert what a snapshot holds"},
    {'T', "source-cache", "CACHE", "cache mode of the sources; writeback if not given"},
    {'O', "output-format", "FORMAT", "format of the new image, raw if not given"},
    {'o', "options", "OPTIONS", "its creation options, key=value,…; 'help' lists them"},
    {key::target_image_opts, "target-image-opts", nullptr, "DST is an option string; needs -n"},
    {'t', "output-cache", "CACHE", "cache mode of the new image; unsafe if not given"},
    {'B', "backing", "FILE", "the new image takes what it does not hold from FILE; needs -F"},
    {'F', "backing-format", "FORMAT", "format of the backing file"},
    {'c', "compress", nullptr, "compress the new image"},
    shared::level,
    shared::recompress,
    {key::verify, "verify", nullptr, "decode compressed clusters that are copied as stored"},
    {'n', "no-create", nullptr, "DST is there already"},
    shared::progress,
    shared::quiet,
    {'S', "sparse-size", "SIZE", "fewest zero bytes that make a hole, 4k if not given; 0: none"},
    {'m', "parallel", "NUMBER", "requests at a time, 1 to 16; 8 if not given"},
    {'W', "oob-writes", nullptr, "allow writes out of order (no effect: never needed)"},
    {'C', "copy-range-offloading", nullptr,
     "let the host copy, and files share space, where it can"},
    shared::rate,
    {'U', "force-share", nullptr, "others may write the sources meanwhile"},
    {key::target_is_zero, "target-is-zero", nullptr, "DST is known to read as zeros; needs -n"},
    {key::bitmaps, "bitmaps", nullptr, "take dirty bitmaps over"},
    {key::skip_broken_bitmaps, "skip-broken-bitmaps", nullptr, "leave inconsistent bitmaps out"},
    {key::salvage, "salvage", nullptr, "take what cannot be read for zeros"},
    shared::object,
    shared::help,
};

struct Request {
  std::vector<ImageArguments> sources;
  std::optional<SnapshotSelector> snapshot;  // of the only source
  ImageArguments target;
  std::string output_format;
  std::vector<std::string> option_lists;
  std::optional<std::string> backing, backing_format;
  CopyOptions copy;
  std::uint64_t rate = 0;  // bytes per second, 0: no limit
  bool create = true;
  bool bitmaps = false;
  bool salvage = false;
  bool quiet = false;
  BrokenBitmaps broken_bitmaps = BrokenBitmaps::refuse;
};

[[noreturn]] void fail(std::string_view text) { throw Error(EINVAL, text); }

void check_combinations(const Arguments& arguments) {
  const auto has = [&](int option) { return arguments.has(option); };
  const bool create = !has('n');
  if (create && has(key::target_image_opts)) fail("--target-image-opts needs -n");
  if (create && has(key::target_is_zero)) fail("--target-is-zero needs -n");
  if (has('O') && has(key::target_image_opts)) {
    fail("-O (--output-format) and --target-image-opts exclude each other");
  }
  if (!create && has('o')) fail("-o (--options) has no meaning with -n: nothing is created");
  if (has('C') && (has('c') || has('S') || has(key::salvage))) {
    fail("-C cannot be used with -c, -S or --salvage");
  }
  for (const auto& [option, name] :
       {std::pair(key::level, "--level"), std::pair(key::recompress, "--recompress"),
        std::pair(key::verify, "--verify")}) {
    if (has(option) && !has('c')) fail(fmt::format("{} needs -c (--compress)", name));
  }
  if (has('B') && !has('F')) fail("-B (--backing) needs -F (--backing-format)");
  if (has('B') && arguments.operands.size() > 2) {
    fail("-B (--backing) needs a single source");
  }
  if (has(key::skip_broken_bitmaps) && !has(key::bitmaps)) {
    fail("--skip-broken-bitmaps needs --bitmaps");
  }
  if (has(key::bitmaps) && arguments.operands.size() > 2) fail("--bitmaps needs a single source");
  if (has('l') && arguments.operands.size() > 2) fail("-l (--snapshot) needs a single source");
  if (has('F') && !has('B')) fail("-F (--backing-format) needs -B (--backing)");
}

std::uint64_t sparse_size(const std::string& text) {
  constexpr std::uint64_t largest = 16 << 20;
  const std::uint64_t size = size_argument(text, "sparse size");
  if (size % 512 != 0 || size > largest) {
    fail(fmt::format("Invalid sparse size {}: must be 0 or a multiple of 512 up to {}", text,
                     largest));
  }
  return size;
}

Request read_request(const Arguments& arguments) {
  expect_operands(arguments, 2, SIZE_MAX, "the names of a source and a target");
  check_combinations(arguments);
  Request request;
  ImageArguments source;
  source.format = arguments.value_or('f', "");
  source.image_opts = arguments.has(key::image_opts) || arguments.has(key::source_image_opts);
  source.force_share = arguments.has('U');
  source.cache = cache_argument(arguments, 'T');
  for (std::size_t i = 0; i + 1 < arguments.operands.size(); ++i) {
    source.filename = arguments.operands[i];
    request.sources.push_back(source);
  }
  if (const std::string* text = arguments.last('l')) request.snapshot = snapshot_selector(*text);
  request.output_format = arguments.value_or('O', "raw");
  request.target.filename = arguments.operands.back();
  request.target.image_opts = arguments.has(key::target_image_opts);
  if (!request.target.image_opts) request.target.format = request.output_format;
  request.target.read_only = false;
  request.target.cache = parse_cache_mode(arguments.value_or('t', "unsafe"));
  request.target.discard_unmap = true;
  request.option_lists = option_lists(arguments);
  if (const std::string* name = arguments.last('B')) request.backing = *name;
  if (const std::string* name = arguments.last('F')) request.backing_format = *name;
  request.create = !arguments.has('n');
  // An image that was there before holds more than this copy: nobody marks that.
  if (request.create) request.target.purpose = OpenPurpose::make;
  request.bitmaps = arguments.has(key::bitmaps);
  request.salvage = arguments.has(key::salvage);
  request.quiet = arguments.has('q');
  if (arguments.has(key::skip_broken_bitmaps)) request.broken_bitmaps = BrokenBitmaps::skip;
  request.copy.compressed = arguments.has('c');
  request.copy.offload = arguments.has('C');
  request.copy.encoded = !arguments.has(key::recompress);
  request.copy.verify = arguments.has(key::verify);
  if (const std::string* text = arguments.last(key::level))
    request.copy.level = level_argument(*text);
  request.copy.target_is_zero = arguments.has(key::target_is_zero);
  request.copy.fua = request.target.cache.writethrough;
  if (const std::string* text = arguments.last('S')) request.copy.sparse_size = sparse_size(*text);
  if (const std::string* text = arguments.last('m')) {
    request.copy.chunks_in_flight =
        static_cast<unsigned>(number_argument(*text, "number of requests", 1, 16));
  }
  if (const std::string* text = arguments.last('r')) request.rate = size_argument(*text, "rate");
  return request;
}

// What is to be made, checked before anything is touched.
struct Target {
  CreationTypes types;
  Value::Dict options;
};

Target plan_target(ImageSession& session, const Request& request) {
  Target target;
  target.types =
      creation_types(session.context().drivers(), request.output_format, request.target.filename);
  target.options = parse_creation_options(target.types, request.option_lists);
  if (request.backing) target.options.set("backing_file", *request.backing);
  if (request.backing_format) target.options.set("backing_fmt", *request.backing_format);
  const bool has_backing = target.options.contains("backing_file");
  if (has_backing && !target.types.format->supports_backing) {
    throw Error(ENOTSUP, fmt::format("Format '{}' knows no backing files", request.output_format));
  }
  if (has_backing && !target.options.contains("backing_fmt")) {
    fail("A backing file needs its format (-F or backing_fmt)");
  }
  if (has_backing && request.sources.size() > 1) {
    fail("A backing file needs a single source");
  }
  return target;
}

// What was there before is lost once the target has been made, so no half of it is left.
Task<void> make_target(ImageSession& session, const Request& request, Target target,
                       std::uint64_t size, LongWork& work) {
  if (target.types.format->kind == DriverKind::format && request.copy.compressed &&
      request.output_format == "raw") {
    throw Error(ENOTSUP, "Format 'raw' knows no compression");
  }
  target.options.set("size", size);
  const std::string path = file_path(request.target.filename, session.context().drivers());
  if (access(path.c_str(), F_OK) != 0) work.remove_when_interrupted(path);
  co_await create_image(session.graph(), target.types, request.target.filename, size,
                        std::move(target.options), NewImage::to_be_filled)
      .context(request.target.filename);
  work.remove_when_interrupted(path);
}

// Opened so that nobody can write the source meanwhile, least of all ourselves by making the
// target.
Task<Child*> open_source(ImageSession& session, const ImageArguments& source) {
  Child* root = co_await session.open(source);
  if (!source.force_share) {
    Permissions reading;
    reading.uses = Permission::consistent_read;
    reading.shares = PermissionSet(Permission::consistent_read) | Permission::write_unchanged;
    co_await root->set_permissions(reading);
  }
  co_return root;
}

Task<int> convert(ImageSession& session, const Request& request, LongWork& work) {
  std::optional<Target> target;
  if (request.create) target = plan_target(session, request);
  CopyRequest copying;
  std::uint64_t size = 0;
  for (const ImageArguments& source : request.sources) {
    Child* root = co_await open_source(session, source);
    if (request.snapshot) co_await view_snapshot(*root, *request.snapshot);
    copying.sources.push_back(root);
    size += align_up(root->size(), 512);
  }
  Child* marked = copying.sources.front();
  if (request.bitmaps && request.snapshot) {  // which has none; those of the image are meant
    Child* image = co_await open_source(session, request.sources.front());
    marked = image;
  }
  if (request.bitmaps) check_bitmaps(marked->node(), request.broken_bitmaps);
  const bool has_backing = target && target->options.contains("backing_file");
  const bool new_file = target && target->types.protocol->name == "file";
  if (target) co_await make_target(session, request, std::move(*target), size, work);
  Child* root = co_await session.open(request.target);
  if (request.copy.compressed && root->node().child("data-file") != nullptr) {
    throw Error(ENOTSUP, fmt::format("{}: An image with an external data file (data_file) cannot "
                                     "hold compressed clusters",
                                     request.target.filename));
  }
  if (request.copy.compressed && !root->limits().can_compress) {
    throw Error(ENOTSUP, fmt::format("{}: Format '{}' knows no compression",
                                     request.target.filename, root->node().type().name));
  }
  if (request.copy.compressed) codec::check_level(root->limits().codec, request.copy.level);
  if (request.bitmaps) check_bitmap_target(marked->node(), root->node());
  if (root->size() < size) {
    fail(fmt::format("{}: The target has {} bytes, fewer than the {} of the source",
                     request.target.filename, root->size(), size));
  }
  copying.target = root;
  if (has_backing) copying.base = backing_of(copying.sources.front()->node());
  copying.options = request.copy;
  // A new file holds nothing yet, preallocated or not; a device may hold anything.
  if (new_file && !has_backing) copying.options.target_is_zero = true;
  Progress& progress = work.progress();
  progress.start();
  copying.on_progress = [&work](const CopyProgress& state) { work.show(state); };
  work.control().set_rate(request.rate);
  copying.control = &work.control();
  if (request.salvage) {
    copying.on_unreadable = [&](std::uint64_t offset, const Error& error) {
      if (request.quiet) return;
      print_warning(session.program(), fmt::format("error while reading offset {}: {}", offset,
                                                   std::strerror(error.code())));
    };
  }
  co_await copy(std::move(copying));
  if (request.bitmaps) copy_bitmaps(session.program(), marked->node(), root->node());
  co_await root->flush();
  if (request.create) mark_complete(*root);
  co_await session.close(root);
  progress.complete();
  progress.end();
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != 'o' || !asks_for_help(option.value)) continue;
    DriverTable drivers;
    std::optional<std::string> filename;
    if (!arguments.operands.empty()) filename = arguments.operands.back();
    print(creation_help(creation_types(drivers, arguments.value_or('O', "raw"), filename),
                        filename.has_value()));
    return 0;
  }
  const Request request = read_request(arguments);
  return run_long_session(program, arguments, LongWork::OnInterrupt::stop, convert, request);
}

}  // namespace

constexpr Subcommand convert_command = {"convert", "SRC... DST",
                                        "copies images into one of another form", options, run};

}  // namespace vise::tools
