// The creation options of `create -o` (DriverType::create_options) and those of the schema agree:
// the same names, `_` for `-`, and types that take the same values.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <span>
#include <string>

#include "format/formats.h"
#include "format/qcow2/create_options.h"
#include "protocol/protocols.h"
#include "qapi/qapi-types.h"
#include "util/value_reader.h"
#include "vise/error.h"

namespace vise {
namespace {

/// The schema's name of a -o option.
std::string schema_name(std::string_view option) {
  if (option == "compat") return "version";
  std::string name(option);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

/// Recognised only to be refused with a sentence of its own, so the schema does not have them; or
/// the name of what is a node in the schema.
bool is_described_otherwise(std::string_view option) {
  return option.starts_with("encrypt") || option == "data_file";
}

/// Reads a T in which only `name` is given; what else is required may be missing.
template <class T>
bool takes(const std::string& name, const std::string& text) {
  Value::Dict dict;
  dict.set(name, text);
  const Value value(dict);
  const ValueReader where(value, ValueInput::options);
  DictReader reader(where, DictReader::MissingChildren::allowed);
  T result;
  try {
    read_members(reader, result);
  } catch (const Error&) {
    return false;
  }
  return true;
}

/// The names of T's members, children left out.
template <class T>
std::set<std::string> member_names() {
  const Value empty{Value::Dict()};
  const ValueReader where(empty, ValueInput::options);
  DictReader reader(where, DictReader::MissingChildren::allowed);
  T result;
  read_members(reader, result);
  const auto names = reader.names_without_children();
  return {names.begin(), names.end()};
}

template <class T>
void expect_agreement(std::span<const CreateOption> options, std::set<std::string> elsewhere) {
  std::set<std::string> undescribed = member_names<T>();
  for (const std::string& name : elsewhere) EXPECT_EQ(undescribed.erase(name), 1U) << name;
  for (const CreateOption& option : options) {
    if (is_described_otherwise(option.name)) continue;
    const std::string name = schema_name(option.name);
    EXPECT_EQ(undescribed.erase(name), 1U) << option.name << " is not in the schema";
    SCOPED_TRACE(name);
    EXPECT_EQ(takes<T>(name, "64k"),
              option.type == CreateOption::Type::size ||
                  (option.type == CreateOption::Type::string && takes<T>(name, "any text")));
    if (option.type == CreateOption::Type::boolean) {
      EXPECT_TRUE(takes<T>(name, "on"));
    }
    if (option.type == CreateOption::Type::number) {
      EXPECT_TRUE(takes<T>(name, "16"));
    }
    if (option.type != CreateOption::Type::string) {
      EXPECT_FALSE(takes<T>(name, "any text"));
    }
    if (!option.default_value.empty()) {
      EXPECT_TRUE(takes<T>(name, std::string(option.default_value)));
    }
  }
  for (const std::string& name : undescribed) ADD_FAILURE() << name << " is only in the schema";
}

TEST(QapiCreation, FileOptionsAgreeWithTheSchema) {
  expect_agreement<qapi::BlockdevCreateOptionsFile>(file_driver.create_options,
                                                    {"filename", "size"});
}

TEST(QapiCreation, RawOptionsAgreeWithTheSchema) {
  expect_agreement<qapi::BlockdevCreateOptionsRaw>(raw_driver.create_options, {"size"});
}

TEST(QapiCreation, Qcow2OptionsAgreeWithTheSchema) {
  expect_agreement<qapi::BlockdevCreateOptionsQcow2>(qcow2::create_options, {});
}

TEST(QapiCreation, EverySchemaValueOfAnEnumIsTakenByQcow2) {
  for (const std::string_view mode : names_of(qapi::PreallocMode())) {
    Value::Dict dict;
    dict.set("preallocation", mode);
    EXPECT_NO_THROW(qcow2::CreateOptions::parse(dict)) << mode;
  }
  for (const std::string_view codec : names_of(qapi::Qcow2CompressionType())) {
    Value::Dict dict;
    dict.set("compression_type", codec);
    EXPECT_NO_THROW(qcow2::CreateOptions::parse(dict)) << codec;
  }
  for (const std::string_view version : names_of(qapi::BlockdevQcow2Version())) {
    Value::Dict dict;
    dict.set("compat", version);
    EXPECT_NO_THROW(qcow2::CreateOptions::parse(dict)) << version;
  }
}

}  // namespace
}  // namespace vise
