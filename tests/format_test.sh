#!/bin/sh
# Every C++ file of the project is as clang-format 19 writes it. Skipped (77) where that is not installed.
cd "$1" || exit 1
command -v clang-format-19 >/dev/null || { echo "clang-format-19 is not installed"; exit 77; }
git ls-files -z '*.cc' '*.h' | xargs -0 clang-format-19 --dry-run --Werror
