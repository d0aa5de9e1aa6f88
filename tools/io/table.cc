// All commands of vise-io, sorted by name.
#include <algorithm>
#include <array>

#include "tools/io/command.h"

namespace vise::tools {

namespace {

constexpr OptionSpec option_b = {'b', nullptr, nullptr, "the VM state, not the virtual disk"};
constexpr OptionSpec option_C = {'C', nullptr, nullptr, "statistics on one line, for programs"};
constexpr OptionSpec option_c = {'c', nullptr, nullptr, "write compressed"};
constexpr OptionSpec option_f = {'f', nullptr, nullptr, "stable when it completes (FUA)"};
constexpr OptionSpec option_i = {'i', nullptr, nullptr, "account for an invalid request only"};
constexpr OptionSpec option_p = {'p', nullptr, nullptr, "no effect, for old scripts"};
constexpr OptionSpec option_q = {'q', nullptr, nullptr, "no statistics"};
constexpr OptionSpec option_r = {'r', nullptr, nullptr, "register the buffer first (no effect)"};
constexpr OptionSpec option_u = {'u', nullptr, nullptr, "with -z: may deallocate"};
constexpr OptionSpec option_v = {'v', nullptr, nullptr, "show the bytes"};
constexpr OptionSpec option_z = {'z', nullptr, nullptr, "write zeroes"};
constexpr OptionSpec verify = {'P', nullptr, "PATTERN", "check that every byte is PATTERN (0-255)"};
constexpr OptionSpec fill = {'P', nullptr, "PATTERN", "the byte to write (0-255, else 0xcd)"};

constexpr std::array read_options =
    std::to_array<OptionSpec>({option_b,
                               option_C,
                               {'l', nullptr, "LEN", "with -P: compare so many bytes"},
                               option_p,
                               verify,
                               option_q,
                               option_r,
                               {'s', nullptr, "OFF", "with -P: compare from here in the data on"},
                               option_v});
constexpr std::array readv_options =
    std::to_array<OptionSpec>({option_C, verify, option_q, option_r, option_v});
constexpr std::array aio_read_options =
    std::to_array<OptionSpec>({option_C, option_i, verify, option_q, option_r, option_v});
constexpr std::array write_options = std::to_array<OptionSpec>(
    {option_b,
     option_c,
     option_C,
     option_f,
     {'n', nullptr, nullptr, "with -z: fail rather than write zeros as data"},
     option_p,
     fill,
     option_q,
     option_r,
     {'s', nullptr, "FILE", "write the bytes of FILE again and again"},
     option_u,
     option_z});
constexpr std::array writev_options =
    std::to_array<OptionSpec>({option_C, option_f, fill, option_q, option_r});
constexpr std::array aio_write_options = std::to_array<OptionSpec>(
    {option_C, option_f, option_i, fill, option_q, option_r, option_u, option_z});
constexpr std::array discard_options = std::to_array<OptionSpec>({option_C, option_q});
constexpr std::array truncate_options = std::to_array<OptionSpec>(
    {{'m', nullptr, "MODE", "preallocation: off, metadata, falloc or full"}});
constexpr std::array open_options = std::to_array<OptionSpec>({
    {'r', nullptr, nullptr, "read-only"},
    {'s', nullptr, nullptr, "writes go to a temporary overlay"},
    {'C', nullptr, nullptr, "copy on read"},
    {'n', nullptr, nullptr, "past the host's page cache, like -t none"},
    {'k', nullptr, nullptr, "like -i native"},
    {'U', nullptr, nullptr, "others may write the image meanwhile; needs -r"},
    {'t', nullptr, "CACHE", "writeback, none, writethrough, directsync or unsafe"},
    {'d', nullptr, "MODE", "what discard does: ignore (off) or unmap (on, default)"},
    {'i', nullptr, "AIO", "threads, native or io_uring"},
    {'o', nullptr, "OPTIONS", "options of the driver, key=value,…"},
});
constexpr std::array reopen_options = std::to_array<OptionSpec>({
    {'r', nullptr, nullptr, "read-only"},
    {'w', nullptr, nullptr, "read-write"},
    {'c', nullptr, "CACHE", "cache mode"},
    {'o', nullptr, "OPTIONS", "options of the driver, key=value,…"},
});

constexpr std::string_view asynchronous_help =
    " The request goes on while further commands run, and reports when it is through;\n"
    " aio_flush waits for it. It never makes a command fail.";

using Needs = Command::Needs;

constexpr std::array table = std::to_array<Command>({
    {"abort", "", "", "ends the program with abort(3)", "", 0, 0, {}, Needs::nothing, run_abort},
    {"aio_flush",
     "",
     "",
     "waits for all asynchronous requests",
     "",
     0,
     0,
     {},
     Needs::image,
     run_aio_flush},
    {"aio_read", "", "[-Ciqrv] [-P pattern] off len [len..]", "reads asynchronously",
     asynchronous_help, 2, UINT_MAX, aio_read_options, Needs::image, run_aio_read},
    {"aio_write", "", "[-Cfiqruz] [-P pattern] off len [len..]", "writes asynchronously",
     asynchronous_help, 2, UINT_MAX, aio_write_options, Needs::writable_image, run_aio_write},
    {"alloc",
     "a",
     "offset [count]",
     "says how much is allocated by the image itself",
     "",
     1,
     2,
     {},
     Needs::image,
     run_alloc},
    {"break",
     "",
     "event tag",
     "makes the next request that reaches an event of blkdebug wait",
     " The request goes by the name of the tag from then on; 'resume' lets it go on.",
     2,
     2,
     {},
     Needs::image,
     run_break},
    {"close", "c", "", "closes the image", "", 0, 0, {}, Needs::image, run_close},
    {"discard", "d", "[-Cq] off len", "discards a range", "", 2, UINT_MAX, discard_options,
     Needs::writable_image, run_discard},
    {"flush",
     "f",
     "",
     "makes everything written so far stable",
     "",
     0,
     0,
     {},
     Needs::image,
     run_flush},
    {"help",
     "?",
     "[command]",
     "explains one or all commands",
     "",
     0,
     1,
     {},
     Needs::nothing,
     run_help},
    {"info", "i", "", "tells about the image", "", 0, 0, {}, Needs::image, run_info},
    {"length", "l", "", "gives the virtual size", "", 0, 0, {}, Needs::image, run_length},
    {"map",
     "",
     "",
     "lists what is allocated by the image itself",
     "",
     0,
     0,
     {},
     Needs::image,
     run_map},
    {"open", "o", "[-rsCnkU] [-t cache] [-d discard] [-i aio] [-o options] [path]",
     "opens an image",
     " Example: open -n -o driver=raw /tmp/data\n"
     " opens raw data read-write, past the page cache. An image must not be open already.",
     1, UINT_MAX, open_options, Needs::nothing, run_open},
    {"quit", "q", "", "ends the program", "", 0, UINT_MAX, {}, Needs::nothing, run_quit},
    {"read", "r", "[-bCqrv] [-P pattern [-s off] [-l len]] off len", "reads a range",
     " Example: read -v 512 1k\n shows 1 KiB from byte 512 on.", 2, UINT_MAX, read_options,
     Needs::image, run_read},
    {"readv", "", "[-Cqrv] [-P pattern] off len [len..]", "reads a range into several buffers", "",
     2, UINT_MAX, readv_options, Needs::image, run_readv},
    {"remove_break",
     "",
     "tag",
     "removes the breakpoints of a tag and resumes its requests",
     "",
     1,
     1,
     {},
     Needs::image,
     run_remove_break},
    {"reopen", "", "[(-r|-w)] [-c cache] [-o options]", "changes how the image is opened", "", 0,
     UINT_MAX, reopen_options, Needs::image, run_reopen},
    {"resume",
     "",
     "tag",
     "lets a request go on that waits at a breakpoint",
     "",
     1,
     1,
     {},
     Needs::image,
     run_resume},
    {"sigraise",
     "",
     "signal",
     "raises a signal, given by number",
     "",
     1,
     1,
     {},
     Needs::nothing,
     run_sigraise},
    {"sleep", "", "ms", "waits; requests go on meanwhile", "", 1, 1, {}, Needs::nothing, run_sleep},
    {"truncate", "t", "[-m mode] off", "changes the virtual size", "", 1, 3, truncate_options,
     Needs::writable_image, run_truncate},
    {"wait_break",
     "",
     "tag",
     "waits until a request waits at a breakpoint",
     "",
     1,
     1,
     {},
     Needs::image,
     run_wait_break},
    {"write", "w", "[-bcCfnqruz] [-P pattern | -s file] off len", "writes a range",
     " Example: write -P 0 512 1k\n writes 1 KiB of zeros from byte 512 on.", 2, UINT_MAX,
     write_options, Needs::writable_image, run_write},
    {"writev", "", "[-Cfqr] [-P pattern] off len [len..]", "writes a range from several buffers",
     "", 2, UINT_MAX, writev_options, Needs::writable_image, run_writev},
    {"zone_append",
     "zap",
     "off len [len..]",
     "appends to a zone; zoned devices are not supported",
     "",
     2,
     UINT_MAX,
     {},
     Needs::image,
     run_zone},
    {"zone_close",
     "zc",
     "off len",
     "closes zones; zoned devices are not supported",
     "",
     2,
     2,
     {},
     Needs::image,
     run_zone},
    {"zone_finish",
     "zf",
     "off len",
     "finishes zones; zoned devices are not supported",
     "",
     2,
     2,
     {},
     Needs::image,
     run_zone},
    {"zone_open",
     "zo",
     "off len",
     "opens zones; zoned devices are not supported",
     "",
     2,
     2,
     {},
     Needs::image,
     run_zone},
    {"zone_report",
     "zrp",
     "off count",
     "lists zones; zoned devices are not supported",
     "",
     2,
     2,
     {},
     Needs::image,
     run_zone},
    {"zone_reset",
     "zrs",
     "off len",
     "resets zones; zoned devices are not supported",
     "",
     2,
     2,
     {},
     Needs::image,
     run_zone},
});

}  // namespace

std::span<const Command> commands() { return table; }

const Command* find_command(std::string_view name) {
  const auto* match = std::find_if(table.begin(), table.end(), [&](const Command& command) {
    return name == command.name || (!command.short_name.empty() && name == command.short_name);
  });
  return match == table.end() ? nullptr : match;
}

}  // namespace vise::tools
