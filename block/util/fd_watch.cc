#include "util/fd_watch.h"

#include <glib.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "vise/event_loop.h"

namespace vise {

namespace {

GMainContext* current_context() {
  return static_cast<GMainContext*>(EventLoop::current().native_context());
}

}  // namespace

// Stays attached; the descriptor is in it only while somebody waits, since poll reports a hang-up
// whether it is asked for or not.
struct FdWatch::Source {
  GSource base;
  int fd;
  GIOCondition condition;
  gpointer tag;
  void* waiter;  // a coroutine, or null
  FdWatch* watch;

  static gboolean dispatch(GSource* base, GSourceFunc, gpointer) noexcept {
    auto* self = reinterpret_cast<Source*>(base);
    if (self->waiter == nullptr) return G_SOURCE_CONTINUE;
    const unsigned found = g_source_query_unix_fd(base, self->tag);
    self->watch->readable_ = (found & (G_IO_IN | G_IO_ERR | G_IO_HUP)) != 0;
    self->watch->writable_ = (found & (G_IO_OUT | G_IO_ERR | G_IO_HUP)) != 0;
    self->forget_fd();
    std::coroutine_handle<>::from_address(std::exchange(self->waiter, nullptr)).resume();
    return G_SOURCE_CONTINUE;
  }
  void forget_fd() { g_source_remove_unix_fd(&base, std::exchange(tag, nullptr)); }
};

FdWatch::FdWatch(int fd, Until until) {
  static GSourceFuncs functions = {nullptr, nullptr, Source::dispatch, nullptr, nullptr, nullptr};
  source_ = reinterpret_cast<Source*>(g_source_new(&functions, sizeof(Source)));
  source_->fd = fd;
  source_->tag = nullptr;
  source_->waiter = nullptr;
  source_->watch = this;
  set(until);
  // Else GLib takes the descriptor out of its poll set and puts it back around each dispatch.
  g_source_set_can_recurse(&source_->base, TRUE);
  g_source_attach(&source_->base, current_context());
}

FdWatch::~FdWatch() {
  assert(source_->waiter == nullptr && "somebody still waits");
  g_source_destroy(&source_->base);
  g_source_unref(&source_->base);
}

void FdWatch::set(Until until) {
  source_->condition = until == Until::readable   ? G_IO_IN
                       : until == Until::writable ? G_IO_OUT
                                                  : static_cast<GIOCondition>(G_IO_IN | G_IO_OUT);
}

void FdWatch::arm(std::coroutine_handle<> waiter) {
  assert(source_->waiter == nullptr && "one waiter at a time");
  source_->waiter = waiter.address();
  const auto condition = static_cast<GIOCondition>(source_->condition | G_IO_ERR | G_IO_HUP);
  source_->tag = g_source_add_unix_fd(&source_->base, source_->fd, condition);
}

void FdWatch::cancel() {
  cancelled_ = true;
  interrupt();
}

void FdWatch::interrupt() {
  if (source_->waiter == nullptr) return;
  readable_ = writable_ = false;
  source_->forget_fd();
  EventLoop::current().schedule(
      std::coroutine_handle<>::from_address(std::exchange(source_->waiter, nullptr)));
}

void Timer::start(std::chrono::milliseconds interval, std::function<void()> function) {
  stop();
  const auto count = std::clamp<std::chrono::milliseconds::rep>(interval.count(), 1, G_MAXINT);
  GSource* source = g_timeout_source_new(static_cast<guint>(count));
  // GLib holds a reference to the source while it is dispatched, and the function lives with it.
  g_source_set_callback(
      source,
      [](gpointer data) noexcept -> gboolean {
        (*static_cast<std::function<void()>*>(data))();
        return G_SOURCE_CONTINUE;
      },
      new std::function<void()>(std::move(function)),
      [](gpointer data) { delete static_cast<std::function<void()>*>(data); });
  g_source_attach(source, current_context());
  source_ = source;
}

void Timer::stop() {
  if (source_ == nullptr) return;
  auto* source = static_cast<GSource*>(std::exchange(source_, nullptr));
  g_source_destroy(source);
  g_source_unref(source);
}

}  // namespace vise
