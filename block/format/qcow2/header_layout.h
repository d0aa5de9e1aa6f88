// Numbers of the header's layout that decoding and encoding share. Private to header*.cc.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vise::qcow2 {

inline constexpr std::uint32_t v2_header_length = 72;
inline constexpr std::uint32_t v3_minimal_length = 104;
inline constexpr std::uint32_t v3_header_length = 112;  // what we know and write

namespace extension_type {
inline constexpr std::uint32_t end = 0;
inline constexpr std::uint32_t backing_format = 0xe2792aca;
inline constexpr std::uint32_t feature_names = 0x6803f857;
inline constexpr std::uint32_t bitmaps = 0x23852875;
inline constexpr std::uint32_t crypto_header = 0x0537be77;
inline constexpr std::uint32_t data_file = 0x44415441;
}  // namespace extension_type

inline constexpr std::size_t feature_name_length = 46;
inline constexpr std::size_t feature_entry_size = 2 + feature_name_length;

}  // namespace vise::qcow2
