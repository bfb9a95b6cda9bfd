// See the header.
#include "kernels/parallel/rank_threads.h"

#include "common/base/check.h"

namespace updraft {

RankThreads::RankThreads(int32_t count) {
  UPDRAFT_CHECK(count > 0);
  for (int32_t rank = 0; rank < count; ++rank) threads_.emplace_back([this, rank] { serve(rank); });
}

RankThreads::~RankThreads() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void RankThreads::run(const std::function<void(int32_t rank)>& work) {
  std::unique_lock lock(mutex_);
  work_ = &work;
  busy_ = static_cast<int32_t>(threads_.size());
  ++round_;
  changed_.notify_all();
  changed_.wait(lock, [this] { return busy_ == 0; });
  work_ = nullptr;
}

void RankThreads::serve(int32_t rank) {
  uint64_t done = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return over_ || round_ != done; });
    if (over_) return;
    done = round_;
    const std::function<void(int32_t)>& work = *work_;
    lock.unlock();
    work(rank);
    lock.lock();
    if (--busy_ == 0) changed_.notify_all();
  }
}

}  // namespace updraft
