// The numbers of the NBD protocol. Everything on the wire is big-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vise::nbd {

constexpr std::uint64_t greeting_magic = 0x4e42444d41474943;  // "NBDMAGIC"
constexpr std::uint64_t option_magic = 0x49484156454f5054;    // "IHAVEOPT"
constexpr std::uint64_t option_reply_magic = 0x0003e889045565a9;
constexpr std::uint32_t request_magic = 0x25609513;
constexpr std::uint32_t extended_request_magic = 0x21e41c71;
constexpr std::uint32_t simple_reply_magic = 0x67446698;
constexpr std::uint32_t structured_reply_magic = 0x668e33ef;
constexpr std::uint32_t extended_reply_magic = 0x6e8a278c;

constexpr std::size_t request_size = 28;           // bytes on the wire
constexpr std::size_t extended_request_size = 32;  // bytes on the wire

constexpr std::uint16_t handshake_fixed_newstyle = 1;  // of both sides
constexpr std::uint16_t handshake_no_zeroes = 2;       // of both sides

constexpr std::size_t max_string = 4096;           // bytes of a name, description or query
constexpr std::uint32_t max_payload = 32u << 20;   // bytes of data of one request or reply chunk
constexpr std::uint32_t default_preferred = 4096;  // block size, bytes
constexpr std::uint64_t sector = 512;              // sizes of exports are multiples of it

enum class Option : std::uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
  extended_headers = 11,
};

enum class OptionReply : std::uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  err_unsup = 0x80000001,
  err_policy = 0x80000002,
  err_invalid = 0x80000003,
  err_tls_reqd = 0x80000005,
  err_unknown = 0x80000006,
  err_shutdown = 0x80000007,
  err_too_big = 0x80000009,
  err_ext_header_reqd = 0x8000000a,
};

enum class Info : std::uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

namespace flag {  // of an export
enum : std::uint16_t {
  has_flags = 1 << 0,
  read_only = 1 << 1,
  send_flush = 1 << 2,
  send_fua = 1 << 3,
  send_trim = 1 << 5,
  send_write_zeroes = 1 << 6,
  send_df = 1 << 7,
  can_multi_conn = 1 << 8,
  send_cache = 1 << 10,
  send_fast_zero = 1 << 11,
  block_status_payload = 1 << 12,
};
}

enum class Command : std::uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

namespace command_flag {
enum : std::uint16_t {
  fua = 1 << 0,
  no_hole = 1 << 1,
  df = 1 << 2,
  req_one = 1 << 3,
  fast_zero = 1 << 4,
  payload_length = 1 << 5,
};
}

enum class Chunk : std::uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  block_status_ext = 6,
  error = 0x8001,
};
constexpr std::uint16_t chunk_done = 1;

enum class WireError : std::uint32_t {
  none = 0,
  eperm = 1,
  eio = 5,
  enomem = 12,
  einval = 22,
  enospc = 28,
  eoverflow = 75,
  enotsup = 95,
  eshutdown = 108,
};

/// What an errno of ours is called on the wire; EIO for all that has no number there.
WireError wire_error(int code);

constexpr std::string_view base_allocation = "base:allocation";
constexpr std::string_view allocation_depth = "qemu:allocation-depth";
constexpr std::string_view dirty_bitmap_prefix = "qemu:dirty-bitmap:";
constexpr std::uint32_t status_hole = 1;   // of base:allocation
constexpr std::uint32_t status_zero = 2;   // of base:allocation
constexpr std::uint32_t status_dirty = 1;  // of qemu:dirty-bitmap:…

}  // namespace vise::nbd
