// The generated readers: options of nodes from option strings and from JSON, and their errors.
#include <gtest/gtest.h>

#include <cerrno>

#include "qapi/qapi-introspect.h"
#include "qapi/qapi-types.h"
#include "util/driver_options.h"
#include "util/json.h"
#include "util/keyval.h"
#include "vise/error.h"

namespace vise {
namespace {

using qapi::BlockdevOptions;

BlockdevOptions from_text(std::string_view text) {
  return read_value<BlockdevOptions>(parse_image_options(text).options, ValueInput::options);
}

BlockdevOptions from_json(std::string_view text) {
  return read_value<BlockdevOptions>(json::parse(text), ValueInput::json);
}

TEST(QapiOptions, AnOptionStringFillsTheGeneratedType) {
  const BlockdevOptions options = from_text(
      "driver=qcow2,node-name=top,read-only=on,cache.direct=yes,detect-zeroes=unmap,"
      "lazy-refcounts=off,l2-cache-size=1.5M,cache-clean-interval=60,overlap-check.template=all,"
      "overlap-check.active-l1=off,file.driver=file,file.filename=a,,b.qcow2,backing=base");
  EXPECT_EQ(options.driver, qapi::BlockdevDriver::qcow2);
  EXPECT_EQ(options.node_name, "top");
  EXPECT_EQ(options.read_only, true);
  EXPECT_EQ(options.cache->direct, true);
  EXPECT_EQ(options.detect_zeroes, qapi::BlockdevDetectZeroesOptions::unmap);
  const auto& qcow2 = std::get<qapi::BlockdevOptionsQcow2>(options.branch);
  EXPECT_EQ(qcow2.lazy_refcounts, false);
  EXPECT_EQ(qcow2.l2_cache_size, 1536U << 10);
  EXPECT_EQ(qcow2.cache_clean_interval, 60U);
  const auto& flags = std::get<qapi::Qcow2OverlapCheckFlags>(qcow2.overlap_check->value);
  EXPECT_EQ(flags.template_, qapi::Qcow2OverlapCheckMode::all);
  EXPECT_EQ(flags.active_l1, false);
  EXPECT_EQ(qcow2.backing, Value("base"));
  EXPECT_EQ(json::print_line(qcow2.file), R"({"driver": "file", "filename": "a,b.qcow2"})");
}

TEST(QapiOptions, JsonTypesAreTakenLiterally) {
  const BlockdevOptions options =
      from_json("{'driver': 'raw', 'offset': 4096, 'file': {'driver': 'file', 'filename': 'x'}}");
  EXPECT_EQ(std::get<qapi::BlockdevOptionsRaw>(options.branch).offset, 4096U);
}

TEST(QapiOptions, DriversWithTheSameOptionsShareABranch) {
  const BlockdevOptions options = from_text("driver=null-aio,size=4k,read-zeroes=on");
  EXPECT_EQ(options.driver, qapi::BlockdevDriver::null_aio);
  EXPECT_EQ(std::get<qapi::BlockdevOptionsNull>(options.branch).size, 4096U);
}

TEST(QapiOptions, WhatIsWrittenReadsBack) {
  const char* text =
      R"({"node-name": "n", "discard": "unmap", "cache": {"no-flush": true}, "driver": "qcow2", )"
      R"("file": "f", "backing": null, "overlap-check": "none", "cache-size": 65536})";
  EXPECT_EQ(json::print_line(to_value(from_json(text))), text);
}

struct Refused {
  const char* text;  // '{': JSON, else an option string
  const char* message;
};

class QapiRefuses : public testing::TestWithParam<Refused> {};

TEST_P(QapiRefuses, NamingThePath) {
  try {
    const std::string_view text = GetParam().text;
    text.starts_with('{') ? from_json(text) : from_text(text);
    FAIL() << "accepted " << text;
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), GetParam().message);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, QapiRefuses,
    testing::Values(
        Refused{"driver=file,filenam=x",
                "Parameter 'filenam' is unexpected: did you mean 'filename'?"},
        Refused{"driver=qcow2,file=f,lazy_refcounts=on",
                "Parameter 'lazy_refcounts' is unexpected: did you mean 'lazy-refcounts'?"},
        Refused{"driver=qcow2,file=f,cache.drect=on",
                "Parameter 'cache.drect' is unexpected: did you mean 'cache.direct'?"},
        Refused{"driver=file", "Parameter 'filename' is missing"},
        Refused{"driver=raw", "Parameter 'file' is missing"},
        Refused{"filename=x", "Parameter 'driver' is missing"},
        Refused{"drivr=file,filename=x", "Parameter 'drivr' is unexpected: did you mean 'driver'?"},
        Refused{
            "driver=qcow",
            "Parameter 'driver' does not accept value 'qcow', only file, host_device, null-co, "
            "null-aio, nbd, raw, qcow2, compress, blkdebug, blkverify, copy-on-read, preallocate, "
            "throttle; did you mean 'qcow2'?"},
        Refused{"driver=file,filename=x,locking=maybe",
                "Parameter 'locking' does not accept value 'maybe', only auto, on, off"},
        Refused{"driver=null-co,size=4z",
                "Parameter 'size': '4z' is not a size: expected a number of bytes with an "
                "optional suffix k, M, G, T, P or E"},
        Refused{"driver=null-co,read-zeroes=1",
                "Parameter 'read-zeroes' expects 'on' or 'off', not '1'"},
        Refused{"driver=compress,file=f,level=300",
                "Parameter 'level' expects an integer from 0 to 255"},
        Refused{"driver=qcow2,file=f,overlap-check.0=x",
                "Invalid parameter type for 'overlap-check', expected: Qcow2OverlapChecks"},
        Refused{"{'driver': 'null-co', 'size': '4k'}",
                "Invalid parameter type for 'size', expected: integer"},
        Refused{"{'driver': 'null-co', 'size': -1}",
                "Parameter 'size' expects an integer from 0 to 9223372036854775807"},
        Refused{"{'driver': 'raw', 'file': null}",
                "Invalid parameter type for 'file', expected: name of a node or its options"},
        Refused{"{'driver': 'raw', 'file': 'f', 'cache': 1}",
                "Invalid parameter type for 'cache', expected: object"}));

TEST(QapiResults, KeysComeInTheOrderOfTheSchema) {
  qapi::BlockGraphInfo file;
  file.filename = "a.qcow2";
  file.format = "file";
  file.virtual_size = 512;
  file.format_specific.emplace().type = qapi::ImageInfoSpecificKind::file;
  file.format_specific->branch = qapi::ImageInfoSpecificFileWrapper{};
  qapi::BlockGraphInfo image;
  image.filename = "a.qcow2";
  image.format = "qcow2";
  image.virtual_size = 1 << 20;
  image.children.push_back({.name = "file", .info = file});
  EXPECT_EQ(json::print_line(to_value(image)),
            R"({"filename": "a.qcow2", "format": "qcow2", "virtual-size": 1048576, "children": )"
            R"([{"name": "file", "info": {"filename": "a.qcow2", "format": "file", )"
            R"("virtual-size": 512, "format-specific": {"type": "file", "data": {}}, )"
            R"("children": []}}]})");
}

TEST(QapiIntrospection, IsJson) { EXPECT_TRUE(json::parse(qapi::introspection_json()).is_list()); }

}  // namespace
}  // namespace vise
