// File names of NBD exports: to options of the driver nbd, and back.
#pragma once

#include <string>
#include <string_view>

#include "vise/value.h"

namespace vise {

/// "nbd://HOST[:PORT][/EXPORT]", "nbd+unix:///EXPORT?socket=PATH", and the old forms
/// "nbd:HOST:PORT" and "nbd:unix:PATH", both with ":exportname=NAME" or not. Throws Error(EINVAL).
Value::Dict nbd_options_of_name(std::string_view name);

/// The URI of an export, its name not encoded; empty if `options` say more than which export it is.
std::string nbd_name_of_options(Value::Dict options);

}  // namespace vise
