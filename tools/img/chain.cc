#include "tools/img/chain.h"

#include <filesystem>
#include <system_error>

#include "graph/chain.h"
#include "graph/file_names.h"
#include "vise/child.h"

namespace vise::tools {

namespace {

bool is_same_file(const std::string& a, const std::string& b) {
  if (a == b) return true;
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

}  // namespace

Node* find_in_chain(Node& first, const std::string& filename) {
  for (Node* at = &first; at != nullptr; at = backing_of(*at)) {
    if (at->filename() == filename || is_same_file(at->protocol_filename(), filename)) return at;
  }
  return nullptr;
}

std::string backing_path(const Node& image, const std::string& backing) {
  if (backing.starts_with(json_prefix) || !protocol_prefix(backing).empty()) return backing;
  return resolve_relative(image.protocol_filename(), backing);
}

}  // namespace vise::tools
