// Asks with libnbd, one export after the other over one connection.
#include "protocol/nbd/list.h"

#include <fmt/format.h>
#include <libnbd.h>

#include <cerrno>
#include <memory>
#include <string_view>

#include "protocol/nbd/connection.h"
#include "vise/error.h"

namespace vise::nbd {

namespace {

[[noreturn]] void fail(std::string_view what) {
  const int code = nbd_get_errno() != 0 ? nbd_get_errno() : EIO;
  throw Error(code, fmt::format("{}: {}", what, nbd_get_error()));
}

struct Closer {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Handle = std::unique_ptr<nbd_handle, Closer>;

std::vector<ExportDescription> names_of(nbd_handle* nbd) {
  std::vector<ExportDescription> exports;
  const nbd_list_callback callback = {
      .callback =
          [](void* data, const char* name, const char* description) noexcept {
            static_cast<std::vector<ExportDescription>*>(data)->push_back(
                {.name = name, .description = description});
            return 0;
          },
      .user_data = &exports,
      .free = nullptr};
  if (nbd_opt_list(nbd, callback) < 0) fail("The server does not list its exports");
  return exports;
}

std::vector<std::string> contexts_of(nbd_handle* nbd) {
  std::vector<std::string> names;
  const nbd_context_callback callback = {
      .callback =
          [](void* data, const char* name) noexcept {
            static_cast<std::vector<std::string>*>(data)->push_back(name);
            return 0;
          },
      .user_data = &names,
      .free = nullptr};
  // A server that knows nothing of them has none.
  if (nbd_opt_list_meta_context(nbd, callback) < 0) names.clear();
  return names;
}

// libnbd hides the field, but answers for each of its bits.
std::uint32_t flags_of(nbd_handle* nbd) {
  struct Flag {
    unsigned bit;
    int set;
  };
  const Flag flags[] = {
      {1, nbd_is_read_only(nbd)},   {2, nbd_can_flush(nbd)},      {3, nbd_can_fua(nbd)},
      {4, nbd_is_rotational(nbd)},  {5, nbd_can_trim(nbd)},       {6, nbd_can_zero(nbd)},
      {7, nbd_can_df(nbd)},         {8, nbd_can_multi_conn(nbd)}, {10, nbd_can_cache(nbd)},
      {11, nbd_can_fast_zero(nbd)},
  };
  std::uint32_t bits = 1;
  for (const Flag& flag : flags) {
    if (flag.set == 1) bits |= 1u << flag.bit;
  }
  return bits;
}

std::uint32_t block_size(nbd_handle* nbd, int which) {
  const std::int64_t size = nbd_get_block_size(nbd, which);
  return size > 0 && size <= UINT32_MAX ? static_cast<std::uint32_t>(size) : 0;
}

void ask_for_details(nbd_handle* nbd, ExportDescription& about) {
  if (nbd_set_export_name(nbd, about.name.c_str()) < 0 || nbd_opt_info(nbd) < 0) {
    about.error = nbd_get_error();
    return;
  }
  const std::int64_t size = nbd_get_size(nbd);
  if (size < 0) fail(about.name);
  about.size = static_cast<std::uint64_t>(size);
  about.flags = flags_of(nbd);
  about.minimum = block_size(nbd, LIBNBD_SIZE_MINIMUM);
  about.preferred = block_size(nbd, LIBNBD_SIZE_PREFERRED);
  about.maximum = block_size(nbd, LIBNBD_SIZE_MAXIMUM);
  about.contexts = contexts_of(nbd);
}

void connect(nbd_handle* nbd, const SocketAddress& address) {
  const bool local = address.kind == SocketAddress::Kind::local;
  const int status = local ? nbd_connect_unix(nbd, address.path.c_str())
                           : nbd_connect_tcp(nbd, address.host.c_str(), address.port.c_str());
  if (status < 0) fail(fmt::format("Failed to connect to '{}'", address.text()));
}

}  // namespace

std::vector<ExportDescription> list_exports(const Target& target) {
  const Handle nbd(nbd_create());
  if (nbd == nullptr) fail("libnbd");
  nbd_set_opt_mode(nbd.get(), true);
  nbd_set_full_info(nbd.get(), true);
  if (target.tls != nullptr) prepare_tls(nbd.get(), target.address, *target.tls);
  connect(nbd.get(), target.address);
  if (!nbd_aio_is_negotiating(nbd.get())) {
    throw Error(EPROTO, "The server is too old to list its exports");
  }
  std::vector<ExportDescription> exports = names_of(nbd.get());
  for (ExportDescription& about : exports) ask_for_details(nbd.get(), about);
  nbd_opt_abort(nbd.get());
  return exports;
}

}  // namespace vise::nbd
