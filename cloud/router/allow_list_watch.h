// Watches the folder of nodes' keys, so that nodes are let in and shut out without a restart. A
// folder that cannot be read or holds a broken file leaves the last good list in force.
//
// Threads: one of its own, which calls `changed`.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/net/pool_socket.h"

namespace updraft {

class AllowListWatch {
 public:
  // changed: the new list, called on the watch's thread each time files in the folder have changed
  // and are all good.
  AllowListWatch(std::string folder, int32_t interval_ms,
                 std::function<void(const std::vector<AllowedKey>&)> changed);
  ~AllowListWatch();  // ends the thread
  AllowListWatch(const AllowListWatch&) = delete;
  AllowListWatch& operator=(const AllowListWatch&) = delete;

 private:
  void run();
  void look();

  const std::string folder_;
  const int32_t interval_ms_;
  const std::function<void(const std::vector<AllowedKey>&)> changed_;
  bool looked_ = false;  // the watch's thread
  std::string seen_;     // names, sizes and times of the files at the last look; the watch's thread
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace updraft
