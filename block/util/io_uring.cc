// File I/O by io_uring. The ring's descriptor is a source of the loop's GLib context: requests
// collected during one iteration are submitted together before the loop goes to sleep, and
// completions are taken out together when it wakes.
#include "util/io_engine.h"
#include "vise-config.h"

#ifdef VISE_HAVE_IO_URING

#include <glib.h>
#include <liburing.h>

#include <cassert>
#include <cerrno>
#include <utility>
#include <vector>

namespace vise {

namespace {

// Requests handed to the kernel at once; more wait in our own queue.
constexpr unsigned ring_entries = 256;

class IoUring final : public IoEngine {
 public:
  IoUring(EventLoop& loop, IoEngine& threads) : loop_(loop), threads_(threads) {}

  ~IoUring() override {
    if (source_ == nullptr) return;
    assert(in_flight_ == 0 && pending_ == nullptr);
    g_source_destroy(&source_->base);
    g_source_unref(&source_->base);
    io_uring_queue_exit(&ring_);
  }

  std::string_view name() const override { return refused_ ? threads_.name() : "io_uring"; }

 private:
  struct RingSource {
    GSource base;
    IoUring* engine;
  };

  // A ring is made for the first request that is for it: many a program has none. False if the
  // kernel refuses.
  bool is_set_up() {
    if (source_ == nullptr && !refused_) refused_ = !set_up();
    return !refused_;
  }

  bool set_up() {
    // The completions of COOP_TASKRUN wait for the next system call, and there is one per turn of
    // the loop anyway. Kernels before 6.0 do not know one of the flags.
    int result = io_uring_queue_init(ring_entries, &ring_,
                                     IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SINGLE_ISSUER);
    if (result == -EINVAL) result = io_uring_queue_init(ring_entries, &ring_, 0);
    if (result < 0) return false;
    // Without NODROP (Linux 5.5) completions beyond the queue's size would be lost, and reads and
    // writes without iovecs came just after it.
    if ((ring_.features & (IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS)) !=
        (IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS)) {
      io_uring_queue_exit(&ring_);
      return false;
    }
    attach();
    return true;
  }

  void attach() {
    static GSourceFuncs functions = {prepare, check, dispatch, nullptr, nullptr, nullptr};
    source_ = reinterpret_cast<RingSource*>(g_source_new(&functions, sizeof(RingSource)));
    source_->engine = this;
    g_source_add_unix_fd(&source_->base, ring_.ring_fd, G_IO_IN);
    g_source_attach(&source_->base, static_cast<GMainContext*>(loop_.native_context()));
  }

  // The kernel gives what it cannot start at once, which is all but reads and writes, to threads of
  // its own. Ours are as fast, and end with the process: after a kill, a sync on one of the
  // kernel's holds the file, and so our locks on it, until it is through.
  void start(Request& request) override {
    const bool transfers =
        request.operation == Operation::read || request.operation == Operation::write;
    if (!transfers || !is_set_up()) {
      start_on(threads_, request);
      return;
    }
    *pending_end_ = &request;
    pending_end_ = &request.next;
  }

  // Moves what is pending into the ring, as far as it has room, and tells the kernel.
  void submit() {
    while (pending_ != nullptr && in_flight_ < ring_entries) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) break;
      Request& request = *pending_;
      pending_ = std::exchange(request.next, nullptr);
      if (pending_ == nullptr) pending_end_ = &pending_;
      prepare_entry(*sqe, request);
      io_uring_sqe_set_data(sqe, &request);
      ++in_flight_;
    }
    // -EAGAIN and -EBUSY leave the entries in the ring for the next turn.
    if (io_uring_sq_ready(&ring_) > 0) io_uring_submit(&ring_);
  }

  static void prepare_entry(io_uring_sqe& sqe, const Request& request) {
    const int flags = request.durability == Durability::data_sync ? RWF_DSYNC : 0;
    const iovec* vectors = request.vectors;
    switch (request.operation) {
      case Operation::read:
        if (request.vector_count == 1) {
          io_uring_prep_read(&sqe, request.fd, vectors->iov_base,
                             static_cast<unsigned>(vectors->iov_len), request.offset);
        } else {
          io_uring_prep_readv(&sqe, request.fd, vectors, request.vector_count, request.offset);
        }
        break;
      case Operation::write:
        if (request.vector_count == 1) {
          io_uring_prep_write(&sqe, request.fd, vectors->iov_base,
                              static_cast<unsigned>(vectors->iov_len), request.offset);
        } else {
          io_uring_prep_writev(&sqe, request.fd, vectors, request.vector_count, request.offset);
        }
        sqe.rw_flags = flags;
        break;
      case Operation::sync:
      case Operation::allocate:
      case Operation::call:
        assert(false);
        break;
    }
  }

  // Resuming straight from here is fine: nothing but the loop is below on the stack.
  void resume_finished() noexcept {
    unsigned count = 0;
    io_uring_cqe* cqes[ring_entries];
    while ((count = io_uring_peek_batch_cqe(&ring_, cqes, ring_entries)) > 0) {
      finished_.clear();
      for (unsigned i = 0; i < count; ++i) {
        auto* request = static_cast<Request*>(io_uring_cqe_get_data(cqes[i]));
        request->result = cqes[i]->res;
        finished_.push_back(request->waiter);
      }
      io_uring_cq_advance(&ring_, count);
      in_flight_ -= count;
      for (const auto waiter : finished_) waiter.resume();
    }
  }

  static gboolean prepare(GSource* source, gint* timeout) {
    IoUring& engine = *reinterpret_cast<RingSource*>(source)->engine;
    engine.submit();
    *timeout = io_uring_sq_ready(&engine.ring_) > 0 ? 1 : -1;  // ms; the kernel was out of memory
    return io_uring_cq_ready(&engine.ring_) > 0;
  }
  static gboolean check(GSource* source) {
    return io_uring_cq_ready(&reinterpret_cast<RingSource*>(source)->engine->ring_) > 0;
  }
  static gboolean dispatch(GSource* source, GSourceFunc, gpointer) {
    reinterpret_cast<RingSource*>(source)->engine->resume_finished();
    return G_SOURCE_CONTINUE;
  }

  EventLoop& loop_;
  IoEngine& threads_;
  io_uring ring_{};
  RingSource* source_ = nullptr;
  bool refused_ = false;
  unsigned in_flight_ = 0;
  Request* pending_ = nullptr;
  Request** pending_end_ = &pending_;
  std::vector<std::coroutine_handle<>> finished_;
};

}  // namespace

std::unique_ptr<IoEngine> make_io_uring(EventLoop& loop, IoEngine& threads) {
  return std::make_unique<IoUring>(loop, threads);
}

}  // namespace vise

#else

namespace vise {

std::unique_ptr<IoEngine> make_io_uring(EventLoop&, IoEngine&) { return nullptr; }

}  // namespace vise

#endif
