// Nodes without a model, for measuring the router in front of them: MockService answers over the
// production pool link, BeatSwarm is many nodes that beat and do nothing else.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/result.h"
#include "common/message/node_status.h"
#include "common/message/service.h"
#include "common/net/pool_socket.h"

namespace updraft {

// Answers max_tokens tokens of four bytes. kInstantModel: all of them at once, before submit()
// returns. kPacedModel: one every 50 ms (20 tokens/s) until the end or the cancel.
class MockService : public InferenceService {
 public:
  static constexpr const char* kInstantModel = "instant";
  static constexpr const char* kPacedModel = "paced";

  explicit MockService(std::string node_id);
  ~MockService() override;

  void submit(Request request, EventSink sink) override;
  void cancel(const RequestId& id) override;
  std::vector<ModelInfo> models() const override;
  bool ready(std::string* why_not) const override;

  // As a node of that many slots would report itself.
  void fill_beat(NodeBeat& beat, int32_t slots) const;

 private:
  static constexpr size_t kBuckets = 50;  // of one millisecond: a paced stream is in one of them
  struct Paced {
    RequestId id;
    EventSink sink;
    int32_t tokens_left = 0;
    int32_t offset = 0;
    int64_t started_ns = 0;
  };

  Started started() const;
  void pace();

  const std::string node_id_;
  std::atomic<int32_t> running_{0};
  std::mutex mutex_;
  std::condition_variable stopping_changed_;
  bool stopping_ = false;
  size_t next_bucket_ = 0;
  std::vector<Paced> buckets_[kBuckets];
  std::unordered_map<RequestId, size_t> bucket_of_;
  std::thread thread_;
};

// Many nodes that only say hello and beat, in processes of their own.
class BeatSwarm {
 public:
  // Forks them: call it before other threads are started. Node i dials with keys[i] and is
  // "swarm-i"; once welcomed it beats every 250 ms. They come back by themselves when the router
  // does. Errors: no more processes.
  static Result<BeatSwarm> start(const std::string& endpoint, const std::string& router_public_key,
                                 const std::vector<CurveKeys>& keys);
  // From now on they beat as fast as their connections take it.
  void flood() const;
  BeatSwarm(BeatSwarm&& other) noexcept : processes_(std::exchange(other.processes_, {})) {}
  BeatSwarm& operator=(BeatSwarm&&) = delete;
  ~BeatSwarm();  // ends them

 private:
  BeatSwarm() = default;
  std::vector<pid_t> processes_;
};

}  // namespace updraft
