// File names as people write them, to and from option trees (docs: cli reference, "Naming images").
#pragma once

#include <string>
#include <string_view>

#include "vise/value.h"

namespace vise {

class DriverTable;
class Node;

inline constexpr std::string_view json_prefix = "json:";

/// The protocol in front of `name`: "nbd" of "nbd:host:1" and "nbd+unix:///x", empty for a plain
/// file name ("./a:b", "/x:y", "a").
std::string_view protocol_prefix(std::string_view name);

/// The options of the protocol node that `name` (not json:) stands for: {"driver": "file",
/// "filename": …}, host_device where it is a device, or the protocol of the prefix.
/// Throws Error(EINVAL) for unknown protocols and empty names.
Value::Dict protocol_options(std::string_view name, DriverTable& drivers);
/// The same for a name that is to be taken as it stands.
Value::Dict plain_file_options(std::string_view name);

/// The options of a "json:{…}" name, nested. Throws Error(EINVAL).
Value::Dict json_options(std::string_view name);

/// `name` as seen from the directory of `image`, unless it is absolute.
std::string resolve_relative(std::string_view image, std::string_view name);

/// What the header of `overlay` says to mean `image`, whose own header says what is below it,
/// whatever backing image its node was given. A relative name counts from the directory of the
/// overlay. Throws Error(EINVAL) if it takes more than a file name.
std::string name_to_store(const Node& image, const Node& overlay);

/// What headers call the format of a backing image: the name of its driver, or 'raw' for what is
/// used without a format.
enum class StoredFormat { as_driver, protocol_as_raw };
std::string format_to_store(const Node& image, StoredFormat how);

}  // namespace vise
