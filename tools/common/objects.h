// --object, of all programs.
#pragma once

#include "tools/common/arguments.h"
#include "vise/objects.h"

namespace vise::tools {

/// True if an --object option asks for help, which has been printed then.
bool answer_object_help(const Arguments& arguments);

/// Makes what the --object options describe: "TYPE,id=ID,key=value,…" or a JSON object. False if
/// one asks for help, which has been printed then. Throws Error(EINVAL / EEXIST).
bool add_objects(const Arguments& arguments, ObjectTable& objects);

}  // namespace vise::tools
