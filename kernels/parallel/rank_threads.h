// One thread for each device of a group, which does there whatever is asked of the group. Owned by
// the thread that calls; while it waits the ranks' threads run.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace updraft {

class RankThreads {
 public:
  explicit RankThreads(int32_t count);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  // Calls work(rank) on every rank's thread, and returns when all are done. Work of one call may
  // wait for that of other ranks in the same call.
  void run(const std::function<void(int32_t rank)>& work);

 private:
  void serve(int32_t rank);

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  const std::function<void(int32_t)>* work_ = nullptr;
  uint64_t round_ = 0;
  int32_t busy_ = 0;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace updraft
