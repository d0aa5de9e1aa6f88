// Bytes to integers and back.
#include "vise/util/endian.h"

#include <gtest/gtest.h>

#include <array>
#include <cerrno>

#include "vise/error.h"

namespace vise {
namespace {

constexpr std::array<std::byte, 9> bytes = {std::byte{0xff}, std::byte{0x01}, std::byte{0x02},
                                            std::byte{0x03}, std::byte{0x04}, std::byte{0x05},
                                            std::byte{0x06}, std::byte{0x07}, std::byte{0x88}};

TEST(Endian, LoadsReadUnalignedBytesInTheirOrder) {
  const std::byte* from = bytes.data() + 1;
  EXPECT_EQ(load_be<std::uint8_t>(from), 0x01);
  EXPECT_EQ(load_be<std::uint16_t>(from), 0x0102);
  EXPECT_EQ(load_be<std::uint32_t>(from), 0x01020304u);
  EXPECT_EQ(load_be<std::uint64_t>(from), 0x0102030405060788u);
  EXPECT_EQ(load_le<std::uint16_t>(from), 0x0201);
  EXPECT_EQ(load_le<std::uint32_t>(from), 0x04030201u);
  EXPECT_EQ(load_le<std::uint64_t>(from), 0x8807060504030201u);
}

TEST(Endian, StoresWriteWhatLoadsRead) {
  std::array<std::byte, 8> to{};
  store_be(to.data(), std::uint64_t{0x0102030405060708});
  EXPECT_EQ(to[0], std::byte{1});
  EXPECT_EQ(load_be<std::uint64_t>(to.data()), 0x0102030405060708u);
  store_le(to.data(), std::uint32_t{0x01020304});
  EXPECT_EQ(to[0], std::byte{4});
  EXPECT_EQ(load_le<std::uint32_t>(to.data()), 0x01020304u);
}

TEST(Endian, AReaderGoesFromFieldToFieldAndStopsAtTheEnd) {
  BigEndianReader reader(bytes);
  EXPECT_EQ(reader.u8(), 0xff);
  EXPECT_EQ(reader.u16(), 0x0102);
  reader.skip(1);
  EXPECT_EQ(reader.u32(), 0x04050607u);
  EXPECT_EQ(reader.position(), 8u);
  EXPECT_EQ(reader.remaining(), 1u);
  try {
    reader.u16();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_STREQ(error.what(), "structure is cut short");
  }
  EXPECT_EQ(reader.position(), 8u);
  EXPECT_THROW(reader.skip(SIZE_MAX), Error);
  EXPECT_EQ(reader.take(1)[0], std::byte{0x88});
  EXPECT_TRUE(reader.take(0).empty());
}

TEST(Endian, WhatAWriterWritesAReaderReads) {
  std::array<std::byte, 20> to;
  to.fill(std::byte{0xee});
  BigEndianWriter writer(to);
  writer.u8(1);
  writer.u16(2);
  writer.u32(3);
  writer.u64(4);
  writer.zeroes(2);
  writer.bytes(std::span(bytes).first(2));
  EXPECT_EQ(writer.remaining(), 1u);
  BigEndianReader reader(to);
  EXPECT_EQ(reader.u8(), 1);
  EXPECT_EQ(reader.u16(), 2);
  EXPECT_EQ(reader.u32(), 3u);
  EXPECT_EQ(reader.u64(), 4u);
  EXPECT_EQ(reader.u16(), 0);
  EXPECT_EQ(reader.u16(), 0xff01);
  EXPECT_EQ(reader.u8(), 0xee);
}

}  // namespace
}  // namespace vise
