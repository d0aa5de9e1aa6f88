// Making new images: the -o options of a format and its protocol, the "Formatting" line, and the
// creation itself. Used by create and convert.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vise/driver.h"
#include "vise/driver_table.h"
#include "vise/graph.h"
#include "vise/value.h"

namespace vise::tools {

/// The format and the protocol of an image to be made.
struct CreationTypes {
  const DriverType* format = nullptr;
  const DriverType* protocol = nullptr;

  /// The format's options in their order, then those of the protocol that it does not have.
  std::vector<CreateOption> options() const;
  const CreateOption* find(std::string_view name) const;
};

/// Throws Error(EINVAL / ENOENT) if there is no such format or protocol, or if it can make no
/// images. Without `filename` there is only the format.
CreationTypes creation_types(DriverTable& drivers, std::string_view format,
                             const std::optional<std::string>& filename);

/// The joined -o lists as a dictionary: sizes as integers, all else as typed. Throws Error(EINVAL)
/// for unknown options and values that are not of their type.
Value::Dict parse_creation_options(const CreationTypes& types,
                                   const std::vector<std::string>& lists);

/// What `-o help` prints. `with_filename`: the options are those for a file, protocol included.
std::string creation_help(const CreationTypes& types, bool with_filename);

/// "Formatting 'NAME', fmt=FMT key=value …" with newline. `options` hold the size.
std::string formatting_line(const CreationTypes& types, const std::string& filename,
                            const Value::Dict& options);

/// The path of the file that `filename` names, with or without a protocol in front.
std::string file_path(const std::string& filename, DriverTable& drivers);

/// Whether the new image is whole as it is made, or is to be filled: then it is marked as
/// incomplete where the format can do that, opens with OpenPurpose::make alone, and mark_complete()
/// ends it.
enum class NewImage { whole, to_be_filled };

/// Makes the image. Nothing of an existing file is changed before the format has accepted all
/// options; a file that did not exist before is removed if the creation fails.
Task<void> create_image(Graph& graph, CreationTypes types, std::string filename, std::uint64_t size,
                        Value::Dict options, NewImage content = NewImage::whole);

/// Nothing more is to come to the image at `root`: from its closing on it opens for everybody.
void mark_complete(const Child& root);

}  // namespace vise::tools
