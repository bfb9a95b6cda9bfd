// Folder of allowed keys, looked at every few seconds. See allow_list_watch.h.
#include "cloud/router/allow_list_watch.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/log/log.h"

namespace updraft {
namespace {

// Changes whenever a key file is added, removed, renamed or written.
std::string fingerprint(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  std::filesystem::directory_iterator at(folder, error);
  if (error) return "unreadable: " + error.message();
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
    if (at->path().extension() != ".pub") continue;
    std::error_code gone;  // a file that vanishes meanwhile changes the next look
    const auto size = at->file_size(gone);
    const auto time = at->last_write_time(gone).time_since_epoch().count();
    files.push_back(at->path().filename().string() + ' ' + std::to_string(size) + ' ' +
                    std::to_string(time) + '\n');
  }
  std::sort(files.begin(), files.end());
  std::string all;
  for (const std::string& file : files) all += file;
  return all;
}

}  // namespace

AllowListWatch::AllowListWatch(std::string folder, int32_t interval_ms,
                               std::function<void(const std::vector<AllowedKey>&)> changed)
    : folder_(std::move(folder)), interval_ms_(interval_ms), changed_(std::move(changed)) {
  thread_ = std::thread([this] { run(); });
}

AllowListWatch::~AllowListWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void AllowListWatch::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    lock.unlock();
    look();
    lock.lock();
    wake_.wait_for(lock, std::chrono::milliseconds(interval_ms_), [this] { return stopping_; });
  }
}

// The first look always reads: the list may have changed between the router's own reading and this
// thread's start.
void AllowListWatch::look() {
  std::string now = fingerprint(folder_);
  if (looked_ && now == seen_) return;
  const bool first = !std::exchange(looked_, true);
  seen_ = std::move(now);
  Result<std::vector<AllowedKey>> keys = load_allowed_keys(folder_);
  if (!keys) {
    log_warn("allowed keys unchanged", {{"why", keys.message()}});
    return;
  }
  if (!first) log_info("allowed keys", {{"folder", folder_}, {"count", keys->size()}});
  changed_(*keys);
}

}  // namespace updraft
