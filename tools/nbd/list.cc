// Asks with libnbd, one export after the other over one connection.
#include "tools/nbd/list.h"

#include <fmt/format.h>
#include <libnbd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "protocol/nbd/connection.h"
#include "tools/common/objects.h"
#include "util/tls_credentials.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

[[noreturn]] void fail(std::string_view what) {
  const int code = nbd_get_errno() != 0 ? nbd_get_errno() : EIO;
  throw Error(code, fmt::format("{}: {}", what, nbd_get_error()));
}

struct Closer {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Handle = std::unique_ptr<nbd_handle, Closer>;

struct Entry {
  std::string name;
  std::string description;
};

std::vector<Entry> names_of(nbd_handle* nbd) {
  std::vector<Entry> entries;
  const nbd_list_callback callback = {
      .callback =
          [](void* data, const char* name, const char* description) noexcept {
            static_cast<std::vector<Entry>*>(data)->push_back({name, description});
            return 0;
          },
      .user_data = &entries,
      .free = nullptr};
  if (nbd_opt_list(nbd, callback) < 0) fail("The server does not list its exports");
  return entries;
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

std::string flags_text(nbd_handle* nbd) {
  struct Flag {
    unsigned bit;
    const char* word;
    int set;
  };
  const Flag flags[] = {
      {1, "readonly", nbd_is_read_only(nbd)},
      {2, "flush", nbd_can_flush(nbd)},
      {3, "fua", nbd_can_fua(nbd)},
      {4, "rotational", nbd_is_rotational(nbd)},
      {5, "trim", nbd_can_trim(nbd)},
      {6, "zeroes", nbd_can_zero(nbd)},
      {7, "df", nbd_can_df(nbd)},
      {8, "multi", nbd_can_multi_conn(nbd)},
      {10, "cache", nbd_can_cache(nbd)},
      {11, "fast-zero", nbd_can_fast_zero(nbd)},
  };
  unsigned bits = 1;
  std::string words;
  for (const Flag& flag : flags) {
    if (flag.set != 1) continue;
    bits |= 1u << flag.bit;
    words += fmt::format(" {}", flag.word);
  }
  return fmt::format("{:#x} ({} )", bits, words);
}

std::string entry_text(nbd_handle* nbd, const Entry& entry) {
  std::string text = fmt::format(" export: '{}'\n", entry.name);
  if (nbd_set_export_name(nbd, entry.name.c_str()) < 0) fail(entry.name);
  if (!entry.description.empty()) {
    text += fmt::format("  description: {}\n", entry.description);
  }
  if (nbd_opt_info(nbd) < 0) return text + fmt::format("  error: {}\n", nbd_get_error());
  text += fmt::format("  size:  {}\n", nbd_get_size(nbd));
  text += fmt::format("  flags: {}\n", flags_text(nbd));
  if (const std::int64_t minimum = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM); minimum > 0) {
    text += fmt::format("  min block: {}\n", minimum);
    text += fmt::format("  opt block: {}\n", nbd_get_block_size(nbd, LIBNBD_SIZE_PREFERRED));
    text += fmt::format("  max block: {}\n", nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM));
  }
  text += "  transaction size: 32-bit\n";
  const std::vector<std::string> contexts = contexts_of(nbd);
  if (contexts.empty()) return text;
  text += fmt::format("  available meta contexts: {}\n", contexts.size());
  for (const std::string& name : contexts) text += fmt::format("   {}\n", name);
  return text;
}

// Nobody listens on "any address"; it means this host.
std::string host_of(const SocketAddress& address) {
  return address.host == "0.0.0.0" ? "localhost" : address.host;
}

void connect(nbd_handle* nbd, const SocketAddress& address) {
  const bool local = address.kind == SocketAddress::Kind::local;
  const int status = local ? nbd_connect_unix(nbd, address.path.c_str())
                           : nbd_connect_tcp(nbd, host_of(address).c_str(), address.port.c_str());
  if (status < 0) fail(fmt::format("Failed to connect to '{}'", address.text()));
}

}  // namespace

int list_exports(const Program&, const NbdArguments& arguments) {
  const Handle nbd(nbd_create());
  if (nbd == nullptr) fail("libnbd");
  nbd_set_opt_mode(nbd.get(), true);
  nbd_set_full_info(nbd.get(), true);
  ObjectTable objects;
  if (!add_objects(arguments.words, objects)) return 0;
  if (!arguments.tls_creds.empty()) {
    const auto credentials =
        find_tls_credentials(objects, arguments.tls_creds, TlsCredentials::Endpoint::client);
    SocketAddress named = *arguments.address;
    named.host = host_of(named);
    nbd::prepare_tls(nbd.get(), named, *credentials);
  }
  connect(nbd.get(), *arguments.address);
  if (!nbd_aio_is_negotiating(nbd.get())) {
    throw Error(EPROTO, "The server is too old to list its exports");
  }
  const std::vector<Entry> entries = names_of(nbd.get());
  print(fmt::format("exports available: {}\n", entries.size()));
  for (const Entry& entry : entries) print(entry_text(nbd.get(), entry));
  nbd_opt_abort(nbd.get());
  return 0;
}

}  // namespace vise::tools
