#include "tools/io/report.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <cstddef>

namespace vise::tools {
namespace {

using namespace std::chrono_literals;

TEST(RequestReport, IsTwoLines) {
  EXPECT_EQ(report_text({"wrote", 65536, 65536, 65536, 250ms}, ReportStyle::two_lines),
            "wrote 65536/65536 bytes at offset 65536\n"
            "64 KiB, 1 ops; 00.25 sec (256 KiB/sec and 4.0000 ops/sec)\n");
}

TEST(RequestReport, IsOneLineForPrograms) {
  EXPECT_EQ(report_text({"read", 0, 65536, 65536, 500ms}, ReportStyle::one_line),
            "65536,1,0:00:00.50,131072.000,2.000\n");
}

TEST(RequestReport, IsSilentOnDemand) {
  EXPECT_EQ(report_text({"read", 0, 512, 512, 1s}, ReportStyle::silent), "");
}

TEST(RequestReport, SurvivesAClockThatStandsStill) {
  EXPECT_EQ(report_text({"discard", 0, 0, 0, 0ns}, ReportStyle::two_lines),
            "discard 0/0 bytes at offset 0\n"
            "0 bytes, 1 ops; 00.00 sec (0 bytes/sec and 1000000000.0000 ops/sec)\n");
}

TEST(ElapsedTime, ChangesItsFormAtOneSecond) {
  EXPECT_EQ(elapsed_text(0ns), "00.00 sec");
  EXPECT_EQ(elapsed_text(994ms), "00.99 sec");
  EXPECT_EQ(elapsed_text(996ms), "01.00 sec");
  EXPECT_EQ(elapsed_text(1240ms), "0:00:01.24");
  EXPECT_EQ(elapsed_text(61530ms), "0:01:01.53");
  EXPECT_EQ(elapsed_text(25h + 3min), "25:03:00.00");
}

TEST(Dump, ShowsSixteenBytesToALine) {
  std::array<std::byte, 20> data;
  data.fill(std::byte{0xcd});
  data[1] = std::byte{'A'};
  EXPECT_EQ(dump_text(data, 0),
            "00000000:  cd 41 cd cd cd cd cd cd cd cd cd cd cd cd cd cd  .A..............\n"
            "00000010:  cd cd cd cd  ....\n");
}

TEST(Dump, WidensTheOffset) {
  const std::array<std::byte, 1> data = {std::byte{0}};
  EXPECT_EQ(dump_text(data, 0x123456789), "123456789:  00  .\n");
}

}  // namespace
}  // namespace vise::tools
