// See mock_nodes.h.
#include "tools/bench/mock_nodes.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/message/pool_message.h"

namespace updraft {
namespace {

constexpr int32_t kContextTokens = 1 << 20;
constexpr int32_t kSlots = 60'000;
constexpr int64_t kKvTokens = 1LL << 36;
constexpr size_t kNodesPerProcess = 2500;  // five descriptors each
constexpr size_t kNodesPerContext = 250;   // three sockets each, of the 1,023 that libzmq gives one

ModelInfo model_info(const char* id) {
  ModelInfo info;
  info.id = id;
  info.digest = "none";
  info.quantization = "none";
  info.context_tokens = kContextTokens;
  return info;
}

TokenChunk chunk_of(int32_t offset, int32_t count) {
  TokenChunk chunk;
  chunk.offset = offset;
  for (int32_t i = 0; i < count; ++i) {
    chunk.ids.push_back(offset + i);
    chunk.text += "word";
  }
  return chunk;
}

Finished finished_of(int32_t tokens, int64_t started_ns) {
  Finished finished;
  finished.usage.prompt_tokens = 1;
  finished.usage.completion_tokens = tokens;
  finished.timings.total_ns = monotonic_ns() - started_ns;
  return finished;
}

}  // namespace

MockService::MockService(std::string node_id)
    : node_id_(std::move(node_id)), thread_([this] { pace(); }) {}

MockService::~MockService() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopping_changed_.notify_all();
  thread_.join();
}

Started MockService::started() const {
  Started started;
  started.node_id = node_id_;
  started.tier = Tier::kCloud;
  started.model = kInstantModel;
  started.decision = "measured";
  started.prompt_tokens = 1;
  return started;
}

void MockService::submit(Request request, EventSink sink) {
  const int64_t now_ns = monotonic_ns();
  const int32_t tokens = request.sampling.max_tokens.value_or(16);
  if (request.model == kInstantModel) {
    sink(started());
    TokenChunk chunk = chunk_of(0, tokens);
    chunk.finish = FinishReason::kLength;
    sink(std::move(chunk));
    sink(finished_of(tokens, now_ns));
    return;
  }
  running_.fetch_add(1, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  sink(started());
  next_bucket_ = (next_bucket_ + 1) % kBuckets;
  bucket_of_[request.id] = next_bucket_;
  buckets_[next_bucket_].push_back({request.id, std::move(sink), tokens, 0, now_ns});
}

void MockService::cancel(const RequestId& id) {
  EventSink sink;
  {
    const std::lock_guard lock(mutex_);
    const auto at = bucket_of_.find(id);
    if (at == bucket_of_.end()) return;
    std::vector<Paced>& bucket = buckets_[at->second];
    const auto stream = std::find_if(bucket.begin(), bucket.end(),
                                     [&](const Paced& paced) { return paced.id == id; });
    sink = std::move(stream->sink);
    bucket.erase(stream);
    bucket_of_.erase(at);
  }
  running_.fetch_sub(1, std::memory_order_relaxed);
  RequestError error;
  error.code = ErrorCode::kCancelled;
  error.message = "cancelled";
  sink(error);
}

void MockService::pace() {
  std::unique_lock lock(mutex_);
  const auto started = std::chrono::steady_clock::now();
  for (uint64_t tick = 0; !stopping_; ++tick) {
    if (stopping_changed_.wait_until(lock, started + std::chrono::milliseconds(tick),
                                     [this] { return stopping_; }))
      return;
    std::vector<Paced>& bucket = buckets_[tick % kBuckets];
    for (Paced& stream : bucket) {
      TokenChunk chunk = chunk_of(stream.offset++, 1);
      const bool last = --stream.tokens_left == 0;
      if (last) chunk.finish = FinishReason::kLength;
      stream.sink(std::move(chunk));
      if (!last) continue;
      stream.sink(finished_of(stream.offset, stream.started_ns));
      bucket_of_.erase(stream.id);
      running_.fetch_sub(1, std::memory_order_relaxed);
    }
    std::erase_if(bucket, [](const Paced& stream) { return stream.tokens_left == 0; });
  }
}

std::vector<ModelInfo> MockService::models() const {
  return {model_info(kInstantModel), model_info(kPacedModel)};
}

bool MockService::ready(std::string*) const { return true; }

void MockService::fill_beat(NodeBeat& beat, int32_t slots) const {
  const int32_t running = std::min(slots, running_.load(std::memory_order_relaxed));
  beat.slots_total = slots;
  beat.slots_free = slots - running;
  beat.running = running;
  beat.kv_tokens_total = beat.kv_tokens_free = kKvTokens;
  beat.prefill_tokens_per_s = 1e6F;
  beat.decode_tokens_per_s = 20;
  beat.bytes_per_token = 4;
}

namespace {

constexpr int32_t kBeatIntervalMs = 250;
volatile sig_atomic_t flooding = 0;  // set by flood()'s signal

// The nodes of one process.
class Swarm {
 public:
  Result<void> dial(const std::string& endpoint, const std::string& router_public_key,
                    const std::vector<CurveKeys>& keys, size_t first, size_t end) {
    for (size_t i = first; i < end; ++i) {
      if ((i - first) % kNodesPerContext == 0) contexts_.push_back(NetContext::create());
      Result<std::unique_ptr<PoolDialer>> dialer =
          PoolDialer::connect(*contexts_.back(), endpoint, router_public_key, keys[i]);
      if (!dialer) return fail("node " + std::to_string(i) + " of the swarm: " + dialer.message());
      Node& node = nodes_.emplace_back();
      node.dialer = std::move(*dialer);
      node.hello.node_id = "swarm-" + std::to_string(i);
      node.hello.boot_epoch = static_cast<uint64_t>(monotonic_ns());
      node.hello.device = "none";
      node.hello.models = {model_info(MockService::kInstantModel)};
      NodeBeat& beat = node.beat;
      beat.boot_epoch = node.hello.boot_epoch;
      beat.interval_ms = kBeatIntervalMs;
      beat.lease_ttl_ms = 3'000;
      beat.state = NodeState::kReady;
      beat.slots_total = beat.slots_free = kSlots;
      beat.kv_tokens_total = beat.kv_tokens_free = kKvTokens;
    }
    return {};
  }

  [[noreturn]] void run() {
    while (true) {
      const int64_t now_ns = monotonic_ns();
      bool busy = false;
      for (Node& node : nodes_) busy |= serve(node, now_ns);
      // Nobody sends at once: the sockets are looked at again in a moment.
      if (!busy) poll(nullptr, 0, 1);
    }
  }

 private:
  struct Node {
    std::unique_ptr<PoolDialer> dialer;
    NodeHello hello;
    NodeBeat beat;
    uint64_t connection = 0;  // that hello was said on
    bool welcomed = false;
    int64_t due_ns = 0;
  };

  bool serve(Node& node, int64_t now_ns) {
    node.dialer->receive(4, [&](std::vector<std::byte>&& frame) {
      const Result<PoolMessage> message = decode(frame);
      if (message && std::holds_alternative<Welcome>(*message)) node.welcomed = true;
    });
    if (!node.dialer->connected()) {
      node.welcomed = false;
      return false;
    }
    if (node.dialer->connection_count() != node.connection) {
      node.welcomed = false;
      if (!node.dialer->send(encode(node.hello))) return false;
      node.connection = node.dialer->connection_count();
      return true;
    }
    if (!node.welcomed || (flooding == 0 && now_ns < node.due_ns)) return false;
    ++node.beat.seq;
    node.beat.sender_mono_ns = now_ns;
    if (!node.dialer->send(encode(node.beat))) return false;
    node.due_ns = flooding != 0 ? 0 : now_ns + kBeatIntervalMs * kNsPerMs;
    return true;
  }

  std::vector<std::unique_ptr<NetContext>> contexts_;
  std::vector<Node> nodes_;
};

}  // namespace

Result<BeatSwarm> BeatSwarm::start(const std::string& endpoint,
                                   const std::string& router_public_key,
                                   const std::vector<CurveKeys>& keys) {
  BeatSwarm swarm;
  for (size_t first = 0; first < keys.size(); first += kNodesPerProcess) {
    const pid_t pid = fork();
    if (pid < 0) return fail("swarm: no more processes");
    if (pid > 0) {
      swarm.processes_.push_back(pid);
      continue;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGUSR1, [](int) { flooding = 1; });
    Swarm nodes;
    const Result<void> dialed = nodes.dial(endpoint, router_public_key, keys, first,
                                           std::min(keys.size(), first + kNodesPerProcess));
    if (!dialed) {
      std::fprintf(stderr, "%s\n", dialed.message().c_str());
      _exit(1);
    }
    nodes.run();
  }
  return swarm;
}

void BeatSwarm::flood() const {
  for (const pid_t pid : processes_) kill(pid, SIGUSR1);
}

BeatSwarm::~BeatSwarm() {
  for (const pid_t pid : processes_) {
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
  }
}

}  // namespace updraft
