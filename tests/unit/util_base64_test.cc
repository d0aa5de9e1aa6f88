#include "util/base64.h"

#include <gtest/gtest.h>

#include "vise/error.h"

namespace vise {
namespace {

TEST(Base64, DecodesWithPaddingAndBlanks) {
  EXPECT_EQ(decode_base64(""), "");
  EXPECT_EQ(decode_base64("Zg=="), "f");
  EXPECT_EQ(decode_base64("Zm8="), "fo");
  EXPECT_EQ(decode_base64("Zm9v\nYmFy "), "foobar");
  EXPECT_EQ(decode_base64("//79"), "\xff\xfe\xfd");
}

TEST(Base64, RefusesWhatIsNone) {
  for (const char* text : {"Z", "Zg=", "Zg==Zg==", "Z=g=", "Zm9*", "===="}) {
    EXPECT_THROW(decode_base64(text), Error) << text;
  }
}

}  // namespace
}  // namespace vise
