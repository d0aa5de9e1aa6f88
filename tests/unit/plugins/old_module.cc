// A module of another version of Vise.
#include "util/module.h"

extern "C" const vise::Module* vise_module() {
  static constexpr vise::Module module = {"0.0.0-test", nullptr};
  return &module;
}
