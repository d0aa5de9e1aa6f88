// A GLib timeout on the loop's context.
#include "util/periodic.h"

#include <glib.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace vise {

Periodic::Periodic(EventLoop& loop, std::chrono::milliseconds interval, std::function<void()> work)
    : work_(std::move(work)) {
  const auto most = std::chrono::milliseconds(std::numeric_limits<guint>::max());
  const auto period = std::clamp(interval, std::chrono::milliseconds(1), most);
  GSource* const source = g_timeout_source_new(static_cast<guint>(period.count()));
  const GSourceFunc call = [](gpointer function) noexcept -> gboolean {
    (*static_cast<std::function<void()>*>(function))();
    return G_SOURCE_CONTINUE;
  };
  g_source_set_callback(source, call, &work_, nullptr);
  g_source_attach(source, static_cast<GMainContext*>(loop.native_context()));
  source_ = source;
}

Periodic::~Periodic() {
  GSource* const source = static_cast<GSource*>(source_);
  g_source_destroy(source);
  g_source_unref(source);
}

}  // namespace vise
