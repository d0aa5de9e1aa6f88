// Walking and searching backing chains.
#pragma once

#include <string>

#include "vise/graph.h"

namespace vise::tools {

/// The image of that file name among `first` and its backing images, null if there is none. Names
/// are compared as files: "./a" is "a".
Node* find_in_chain(Node& first, const std::string& filename);

/// The file name of a backing image as the images and command lines give it: relative names count
/// from the directory of the image that names it.
std::string backing_path(const Node& image, const std::string& backing);

}  // namespace vise::tools
