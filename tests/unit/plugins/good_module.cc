// A module that says which one it is.
#include "util/module.h"
#include "vise-config.h"

extern "C" const vise::Module* vise_module() {
  static constexpr int answer = 42;
  static constexpr vise::Module module = {VISE_VERSION, &answer};
  return &module;
}
