// What the commands on dirty bitmaps do, for commands and transactions alike.
#pragma once

#include <memory>

#include "monitor/action.h"
#include "monitor/services.h"

namespace vise {

std::unique_ptr<Action> add_bitmap_action(Services& services, qapi::BlockDirtyBitmapAdd wanted);
std::unique_ptr<Action> remove_bitmap_action(Services& services, qapi::BlockDirtyBitmap which);
std::unique_ptr<Action> clear_bitmap_action(Services& services, qapi::BlockDirtyBitmap which);
enum class Recording { on, off };
std::unique_ptr<Action> record_bitmap_action(Services& services, qapi::BlockDirtyBitmap which,
                                             Recording recording);
std::unique_ptr<Action> merge_bitmap_action(Services& services, qapi::BlockDirtyBitmapMerge merge);

}  // namespace vise
