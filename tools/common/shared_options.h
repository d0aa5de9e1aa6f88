// The options that many commands take in the same sense: written once, so that all help texts
// agree.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/objects.h"
#include "tools/common/open.h"
#include "tools/common/progress.h"
#include "vise/driver.h"

namespace vise::tools {

namespace shared {

inline constexpr OptionSpec format = {'f', "format", "FORMAT",
                                      "the image's format; else it is found out"};
inline constexpr OptionSpec image_opts = {key::image_opts, "image-opts", nullptr,
                                          "FILE is an option string, key=value,…"};
inline constexpr OptionSpec force_share = {'U', "force-share", nullptr,
                                           "others may write the image meanwhile"};
inline constexpr OptionSpec cache = {'t', "cache", "CACHE", "cache mode; writeback if not given"};
inline constexpr OptionSpec source_cache = {'T', "cache", "CACHE",
                                            "cache mode; writeback if not given"};
inline constexpr OptionSpec rate = {'r', "rate", "RATE", "at most so many bytes per second"};
inline constexpr OptionSpec level = {
    key::level, "level", "LEVEL", "of compression: 1 (fast) to 12 (zlib) or 19 (zstd), or fastest"};
inline constexpr OptionSpec recompress = {key::recompress, "recompress", nullptr,
                                          "compress clusters anew that could be copied as stored"};
inline constexpr OptionSpec output = {key::output, "output", "human|json", "how to print"};
inline constexpr OptionSpec progress = {'p', "progress", nullptr, "show progress"};
inline constexpr OptionSpec quiet = {'q', "quiet", nullptr, "print nothing but errors"};
inline constexpr OptionSpec object = {key::object, "object", "OBJECT",
                                      "an object that nodes refer to: TYPE,id=ID,…"};
inline constexpr OptionSpec trace = {'T', "trace", "TRACE", "accepted and ignored"};
inline constexpr OptionSpec help = {'h', "help", nullptr, "this help"};
inline constexpr OptionSpec version = {'V', "version", nullptr, "the version"};

}  // namespace shared

/// The image that operand `index` names, read-only, as -f, --image-opts and -U say.
ImageArguments image_argument(const Arguments& arguments, std::size_t index = 0);

/// The same for images that are to be changed: writable, with the cache mode of -t. -U is for the
/// command to look at.
ImageArguments writable_image_argument(const Arguments& arguments, std::size_t index = 0);

/// The cache mode that option `key` names; writeback if it is not given. Throws Error(EINVAL).
CacheMode cache_argument(const Arguments& arguments, int key);

/// All values of -o, in the order given.
std::vector<std::string> option_lists(const Arguments& arguments);

/// What -p and -q say about progress. JSON has the standard output for itself.
Progress::Options progress_options(const Arguments& arguments);

/// "off", "metadata", "falloc" or "full". Throws Error(EINVAL) for anything else.
Preallocation parse_preallocation(std::string_view text);

/// Does `body` in a session of its own, with the objects that --object describes; gives its value.
/// 0, after the list of them, if the option asks which objects there are.
template <class Request>
int run_session(const Program& program, const Arguments& arguments,
                Task<int> (*body)(ImageSession&, const Request&), const Request& request) {
  ImageSession session(program);
  if (!add_objects(arguments, session.context().objects())) return 0;
  return session.run(body(session, request));
}

}  // namespace vise::tools
