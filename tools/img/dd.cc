// vise-img dd.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "tools/common/creation.h"
#include "tools/common/long_work.h"
#include "tools/common/open.h"
#include "tools/common/shared_options.h"
#include "tools/img/command.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::tools {
namespace {

constexpr OptionSpec options[] = {
    {'f', "format", "FORMAT", "format of the source; else it is found out"},
    {'O', "output-format", "FORMAT", "format of the new image, raw if not given"},
    {key::image_opts, "image-opts", nullptr, "the source is an option string, key=value,…"},
    {'U', "force-share", nullptr, "others may write the source meanwhile"},
    shared::object,
    shared::help,
};

struct Request {
  ImageArguments source;
  std::string target;
  std::string target_format;
  std::uint64_t block_size = 512;      // bytes
  std::optional<std::uint64_t> count;  // blocks from the start of the source, skipped ones included
  std::uint64_t skip = 0;              // blocks
};

Request read_operands(const Arguments& arguments) {
  Request request;
  std::optional<std::string> source, target;
  for (const std::string& operand : arguments.operands) {
    const std::size_t equals = operand.find('=');
    const std::string name = operand.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : operand.substr(equals + 1);
    if (equals == std::string::npos) {
      throw Error(EINVAL, fmt::format("Unrecognized operand '{}': must be NAME=VALUE", operand));
    }
    if (name == "if") {
      source = value;
    } else if (name == "of") {
      target = value;
    } else if (name == "bs") {
      request.block_size = number_argument(value, "block size", 1, INT32_MAX);
    } else if (name == "count") {
      request.count = size_argument(value, "count");
    } else if (name == "skip") {
      request.skip = size_argument(value, "skip");
    } else {
      throw Error(
          EINVAL,
          fmt::format("Unrecognized operand '{}': must be if, of, bs, count or skip", operand));
    }
  }
  if (!source || !target) throw Error(EINVAL, "Both if= and of= must be given");
  request.source.filename = *source;
  request.target = *target;
  return request;
}

// What of the source is copied.
GuestRange wanted_range(const Request& request, std::uint64_t size) {
  std::uint64_t end = size;
  if (request.count) {
    end = std::min(end, checked::multiply(*request.count, request.block_size).value_or(UINT64_MAX));
  }
  const std::uint64_t start =
      checked::multiply(request.skip, request.block_size).value_or(UINT64_MAX);
  if (start >= end) return {GuestOffset(0), 0};
  return {GuestOffset(start), end - start};
}

// A new image reads as zeros: those are not written.
Task<void> copy_range(Child& source, GuestRange range, Child& target, Progress& progress) {
  constexpr std::uint64_t step = 2 << 20;
  Buffer buffer(std::min(step, range.length));
  for (std::uint64_t done = 0; done < range.length;) {
    const std::uint64_t length = std::min(step, range.length - done);
    const GuestOffset from = range.start + done;
    const auto part = buffer.first(length);
    co_await source.read(from, IoVec(part))
        .context(fmt::format("error while reading at byte {}", from.bytes()));
    if (!is_zero(part)) {
      co_await target.write(GuestOffset(done), ConstIoVec(part))
          .context(fmt::format("error while writing at byte {}", done));
    }
    done += length;
    progress.set(static_cast<double>(done) / static_cast<double>(range.length), done);
  }
}

Task<int> dd(ImageSession& session, const Request& request, LongWork& work) {
  const CreationTypes types =
      creation_types(session.context().drivers(), request.target_format, request.target);
  Child* source = co_await session.open(request.source);
  const std::uint64_t size = shown_size(source->size());
  const GuestRange range = wanted_range(request, size);
  const auto skipped = checked::multiply(request.skip, request.block_size);
  if (!skipped || *skipped > size) {
    // As every dd does: told, but no failure.
    print_error(session.program(),
                fmt::format("{}: cannot skip to the specified offset", request.source.filename));
  }
  const std::uint64_t target_size = align_up(range.length, 512);
  Value::Dict creation;
  creation.set("size", target_size);
  const std::string path = file_path(request.target, session.context().drivers());
  co_await create_image(session.graph(), types, request.target, target_size, std::move(creation),
                        NewImage::to_be_filled)
      .context(request.target);
  work.remove_when_interrupted(path);
  ImageArguments target;
  target.filename = request.target;
  target.format = request.target_format;
  target.read_only = false;
  target.purpose = OpenPurpose::make;
  Child* root = co_await session.open(std::move(target));
  const GuestRange present = range.intersection({GuestOffset(0), source->size()});
  co_await copy_range(*source, present, *root, work.progress());
  co_await root->flush();
  mark_complete(*root);
  co_await session.close(root);
  co_return 0;
}

int run(const Program& program, const Arguments& arguments) {
  Request request = read_operands(arguments);
  request.source.format = arguments.value_or('f', "");
  request.source.image_opts = arguments.has(key::image_opts);
  request.source.force_share = arguments.has('U');
  request.target_format = arguments.value_or('O', "raw");
  return run_long_session(program, arguments, LongWork::OnInterrupt::remove, dd, request);
}

}  // namespace

constexpr Subcommand dd_command = {"dd", "if=SRC of=DST [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]",
                                   "copies a part of an image into a new one", options, run};

}  // namespace vise::tools
