// The loop is an Asio context with one thread. See the header.
#include "common/http/event_loop.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <mutex>
#include <thread>
#include <utility>

#include "common/base/check.h"

namespace updraft {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// What a subscription leaves behind when it ends while its wait is still queued.
struct Callback {
  std::function<void()> call;
  bool over = false;
};

class Watch final : public EventLoop::Subscription {
 public:
  Watch(asio::io_context& io, int fd, std::function<void()> on_readable)
      : descriptor_(io, fd), callback_(std::make_shared<Callback>()) {
    callback_->call = std::move(on_readable);
    arm();
  }
  ~Watch() override {
    callback_->over = true;
    descriptor_.release();  // which cancels the wait; the descriptor itself is the caller's
  }

 private:
  void arm() {
    descriptor_.async_wait(asio::posix::stream_descriptor::wait_read,
                           [this, callback = callback_](error_code error) {
                             if (callback->over || error) return;
                             callback->call();
                             if (!callback->over) arm();
                           });
  }

  asio::posix::stream_descriptor descriptor_;
  const std::shared_ptr<Callback> callback_;
};

class Timer final : public EventLoop::Subscription {
 public:
  Timer(asio::io_context& io, int interval_ms, std::function<void()> task)
      : timer_(io), interval_(interval_ms), callback_(std::make_shared<Callback>()) {
    callback_->call = std::move(task);
    arm();
  }
  ~Timer() override { callback_->over = true; }

 private:
  void arm() {
    timer_.expires_after(interval_);
    timer_.async_wait([this, callback = callback_](error_code error) {
      if (callback->over || error) return;
      callback->call();
      if (!callback->over) arm();
    });
  }

  asio::steady_timer timer_;
  const std::chrono::milliseconds interval_;
  const std::shared_ptr<Callback> callback_;
};

class AsioEventLoop final : public EventLoop {
 public:
  AsioEventLoop() : work_(io_.get_executor()), thread_([this] { io_.run(); }) {}
  ~AsioEventLoop() override { stop(); }

  void post(std::function<void()> task) override { asio::post(io_, std::move(task)); }
  bool on_loop() const override { return io_.get_executor().running_in_this_thread(); }

  std::unique_ptr<Subscription> watch(int fd, std::function<void()> on_readable) override {
    return std::make_unique<Watch>(io_, fd, std::move(on_readable));
  }
  std::unique_ptr<Subscription> every(int interval_ms, std::function<void()> task) override {
    UPDRAFT_CHECK(interval_ms > 0);
    return std::make_unique<Timer>(io_, interval_ms, std::move(task));
  }

  void stop() override {
    const std::lock_guard lock(stop_mutex_);
    if (!thread_.joinable()) return;
    UPDRAFT_CHECK(!on_loop(), "a loop cannot wait for its own end");
    io_.stop();
    thread_.join();
  }

  asio::io_context& io() override { return io_; }

 private:
  // mutable: to ask for the executor changes nothing.
  mutable asio::io_context io_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::mutex stop_mutex_;  // guards thread_
  std::thread thread_;     // last: it uses everything above
};

}  // namespace

std::unique_ptr<EventLoop> EventLoop::start() { return std::make_unique<AsioEventLoop>(); }

}  // namespace updraft
