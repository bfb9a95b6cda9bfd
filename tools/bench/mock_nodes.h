// Nodes without a model, for measuring the router in front of them: MockService answers over the
// production pool link, BeatSwarm is many nodes that only say hello and beat.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
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

// Many nodes on one thread: dialed with keys of their own, said hello, beating.
class BeatSwarm {
 public:
  virtual ~BeatSwarm() = default;
  // Dials `keys.size()` times; node i is "swarm-i". Errors: no more descriptors.
  static Result<std::unique_ptr<BeatSwarm>> dial(const std::string& endpoint,
                                                 const std::string& router_public_key,
                                                 const std::vector<CurveKeys>& keys);
  // Serves the sockets for that long; each node that is welcomed beats every `interval_ms`, 0: as
  // fast as its socket takes beats.
  virtual void run(int64_t for_ns, int32_t interval_ms) = 0;
  virtual size_t welcomed() const = 0;
  virtual uint64_t beats_sent() const = 0;
};

}  // namespace updraft
