// Parts of the library and the programs that lie in files of their own because of what they pull
// in: few runs need libnbd, GnuTLS or libedit, but all would wait until they are loaded and linked.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace vise {

/// What a module exports, as  extern "C" const vise::Module* vise_module();
struct Module {
  const char* version;    // of Vise: a module knows the inside of the library, so it is the same
  const void* interface;  // a struct of the header that introduces the module; lives for ever
};

/// The module in the file NAME.so that was built with this library, which stays loaded. Throws
/// Error(ENOENT / ELIBACC / ELIBBAD) naming the file.
const Module& load_module(std::string_view name);
/// The same with the path of a file, for tests.
const Module& load_module_file(const std::string& path);

/// The folder libvise itself was loaded from; empty if that cannot be told. It may be named from
/// the working directory, which daemons leave, so the first call has to come before that:
/// DriverTable's.
const std::filesystem::path& library_folder();

}  // namespace vise
