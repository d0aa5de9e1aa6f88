// The two ways the programs print a size. (Parsing is in vise/options.h.)
#pragma once

#include <cstdint>
#include <string>

namespace vise::tools {

/// For images: the smallest unit of B, KiB, MiB, … in which the value is below 1000, with three
/// significant digits: "999 KiB", "0.977 MiB", "1e+03 MiB".
std::string image_size_text(std::uint64_t bytes);

/// For vise-io: the largest unit of bytes, KiB, MiB, … not above the value, with three decimals
/// that are left out when they would be .000: "512 bytes", "1.500 KiB". Values below 1024 that are
/// not whole (rates) have six: "66.573846 bytes".
std::string io_size_text(double bytes);

}  // namespace vise::tools
