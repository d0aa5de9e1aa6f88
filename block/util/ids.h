// Identifiers of objects, jobs and exports.
#pragma once

#include <string>
#include <string_view>

namespace vise {

/// A letter, then letters, digits, '-', '.' and '_'.
bool is_id(std::string_view text);

/// Throws Error(EINVAL) that says what the id would be of ("a job").
void require_id(const std::string& id, std::string_view what);

}  // namespace vise
