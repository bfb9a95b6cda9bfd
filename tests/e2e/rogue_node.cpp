// A node that misbehaves as told: for tests of a running router. It dials with a key, then carries
// out the steps of its command line one after the other and prints what happens, a line each.
//
//   rogue_node ENDPOINT ROUTER_PUBLIC_KEY_FILE KEY_FILE STEP...
//
//   "hello id=N tier=edge|cloud model=NAME context=N epoch=N protocol=N models=N"   as given before
//   "beat FIELD=VALUE ..."  sets fields of NodeBeat (nan, inf and any number) and sends one
//   "random BYTES SEED"     a frame of random bytes
//   "cut BYTES"             the first bytes of a good beat
//   "flip COUNT SEED"       COUNT good beats, each with one byte changed
//   "hijack ID EPOCHS"      answers to, failures and cancels of a request that it was never given
//   "await WHAT"            until "connected", "welcome" or "submit" was printed
//   "pause MS"              only listens
//   "stay"                  beats every 50 ms until it is killed
//
// Prints: connected, disconnected, welcome, submit ID, cancel ID, problem TEXT, done STEP.
// Exit status: 0 all steps done, 1 a wait or a frame was not done within 10 s, 2 wrong usage.
#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "common/base/clock.h"
#include "common/message/pool_message.h"
#include "common/net/pool_socket.h"

using namespace updraft;

namespace {

constexpr int64_t kPatienceNs = 10 * kNsPerSecond;
constexpr int64_t kBeatEveryNs = 50 * kNsPerMs;

[[noreturn]] void usage(const std::string& what) {
  std::fprintf(stderr, "rogue_node: %s\n", what.c_str());
  std::exit(2);
}
[[noreturn]] void give_up(const std::string& what) {
  std::fprintf(stderr, "rogue_node: %s\n", what.c_str());
  std::exit(1);
}
void say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

using Setter = std::function<void(NodeBeat&, const std::string&)>;
template <typename T>
Setter field(T NodeBeat::*member) {
  return [member](NodeBeat& beat, const std::string& text) {
    if constexpr (std::is_floating_point_v<T>) {
      beat.*member = static_cast<T>(std::strtod(text.c_str(), nullptr));
    } else if constexpr (std::is_unsigned_v<T>) {
      beat.*member = static_cast<T>(std::strtoull(text.c_str(), nullptr, 10));
    } else {
      beat.*member = static_cast<T>(std::strtoll(text.c_str(), nullptr, 10));
    }
  };
}
const std::map<std::string, Setter>& beat_fields() {
  static const std::map<std::string, Setter> fields = {
      {"boot_epoch", field(&NodeBeat::boot_epoch)},
      {"seq", field(&NodeBeat::seq)},
      {"sender_mono_ns", field(&NodeBeat::sender_mono_ns)},
      {"interval_ms", field(&NodeBeat::interval_ms)},
      {"lease_ttl_ms", field(&NodeBeat::lease_ttl_ms)},
      {"state", field(&NodeBeat::state)},
      {"slots_total", field(&NodeBeat::slots_total)},
      {"slots_free", field(&NodeBeat::slots_free)},
      {"running", field(&NodeBeat::running)},
      {"waiting", field(&NodeBeat::waiting)},
      {"kv_tokens_total", field(&NodeBeat::kv_tokens_total)},
      {"kv_tokens_free", field(&NodeBeat::kv_tokens_free)},
      {"prefill_tokens_queued", field(&NodeBeat::prefill_tokens_queued)},
      {"decode_tokens_reserved", field(&NodeBeat::decode_tokens_reserved)},
      {"prefill_tokens_per_s", field(&NodeBeat::prefill_tokens_per_s)},
      {"decode_tokens_per_s", field(&NodeBeat::decode_tokens_per_s)},
      {"bytes_per_token", field(&NodeBeat::bytes_per_token)},
      {"requests_done", field(&NodeBeat::requests_done)},
      {"cpu_load", field(&NodeBeat::cpu_load)},
      {"memory_free_bytes", field(&NodeBeat::memory_free_bytes)},
      {"memory_total_bytes", field(&NodeBeat::memory_total_bytes)},
      {"last_assignment_seq", field(&NodeBeat::last_assignment_seq)},
  };
  return fields;
}

class Rogue {
 public:
  Rogue(const std::string& endpoint, const std::string& router_key, const CurveKeys& keys)
      : context_(NetContext::create()) {
    auto dialer = PoolDialer::connect(*context_, endpoint, router_key, keys);
    if (!dialer) give_up(dialer.message());
    dialer_ = std::move(*dialer);
    hello_.node_id = "rogue";
    hello_.boot_epoch = static_cast<uint64_t>(unix_seconds()) * 1000;
    hello_.device = "rogue";
    hello_.models = {ModelInfo{}};
    hello_.models[0].id = "rogue-model";
    hello_.models[0].context_tokens = 4096;
    beat_.boot_epoch = hello_.boot_epoch;
    beat_.interval_ms = 50;
    beat_.lease_ttl_ms = 2000;
    beat_.state = NodeState::kReady;
    beat_.slots_total = beat_.slots_free = 4;
    beat_.kv_tokens_total = beat_.kv_tokens_free = 4 * 4096;
  }

  void step(const std::string& text) {
    std::istringstream words(text);
    std::string verb;
    words >> verb;
    if (verb == "hello") {
      hello(words);
    } else if (verb == "beat") {
      set_beat(words);
      beat();
    } else if (verb == "random") {
      random(words);
    } else if (verb == "cut") {
      std::vector<std::byte> frame = next_beat();
      frame.resize(std::min(frame.size(), number(words)));
      send(frame);
    } else if (verb == "flip") {
      flip(words);
    } else if (verb == "hijack") {
      hijack(words);
    } else if (verb == "await") {
      std::string what;
      words >> what;
      const int64_t until_ns = monotonic_ns() + kPatienceNs;
      while (seen_[what] == 0) {
        if (monotonic_ns() > until_ns) give_up("no " + what);
        listen();
      }
    } else if (verb == "pause") {
      const int64_t until_ns = monotonic_ns() + static_cast<int64_t>(number(words)) * kNsPerMs;
      while (monotonic_ns() < until_ns) listen();
    } else if (verb == "stay") {
      for (int64_t due_ns = 0;; listen()) {
        if (monotonic_ns() < due_ns || !dialer_->connected()) continue;
        due_ns = monotonic_ns() + kBeatEveryNs;
        beat();
      }
    } else {
      usage("no such step: " + text);
    }
    say("done " + text.substr(0, 60));
  }

 private:
  static size_t number(std::istringstream& words) {
    size_t value = 0;
    if (!(words >> value)) usage("a number is missing");
    return value;
  }
  static std::pair<std::string, std::string> setting(const std::string& word) {
    const size_t at = word.find('=');
    if (at == std::string::npos) usage("not NAME=VALUE: " + word);
    return {word.substr(0, at), word.substr(at + 1)};
  }

  void hello(std::istringstream& words) {
    for (std::string word; words >> word;) {
      const auto [name, value] = setting(word);
      if (name == "id") {
        hello_.node_id = value;
      } else if (name == "tier") {
        hello_.tier = value == "edge" ? Tier::kEdge : Tier::kCloud;
      } else if (name == "model") {
        hello_.models[0].id = value;
      } else if (name == "context") {
        hello_.models[0].context_tokens = std::atoi(value.c_str());
      } else if (name == "epoch") {
        hello_.boot_epoch = beat_.boot_epoch = std::strtoull(value.c_str(), nullptr, 10);
      } else if (name == "protocol") {
        hello_.protocol_version = static_cast<uint32_t>(std::atoi(value.c_str()));
      } else if (name == "models") {
        const ModelInfo first = hello_.models[0];
        hello_.models.assign(std::strtoul(value.c_str(), nullptr, 10), first);
        for (size_t i = 1; i < hello_.models.size(); ++i)
          hello_.models[i].id += "-" + std::to_string(i);
      } else {
        usage("a hello has no " + name);
      }
    }
    send(encode(hello_));
  }

  void set_beat(std::istringstream& words) {
    for (std::string word; words >> word;) {
      const auto [name, value] = setting(word);
      const auto found = beat_fields().find(name);
      if (found == beat_fields().end()) usage("a beat has no " + name);
      found->second(beat_, value);
    }
  }
  std::vector<std::byte> next_beat() {
    ++beat_.seq;
    return encode(beat_);
  }
  void beat() { send(next_beat()); }

  void random(std::istringstream& words) {
    std::vector<std::byte> frame(number(words));
    std::mt19937_64 random(number(words));
    for (std::byte& byte : frame) byte = static_cast<std::byte>(random());
    send(frame);
  }
  void flip(std::istringstream& words) {
    const size_t count = number(words);
    std::mt19937_64 random(number(words));
    for (size_t i = 0; i < count; ++i) {
      std::vector<std::byte> frame = next_beat();
      frame[random() % frame.size()] ^= static_cast<std::byte>(1 + random() % 255);
      send(frame);
    }
  }
  void hijack(std::istringstream& words) {
    std::string id;
    words >> id;
    const auto epochs = static_cast<uint32_t>(number(words));
    for (uint32_t epoch = 1; epoch <= epochs; ++epoch) {
      TokenChunk chunk;
      chunk.ids = {1};
      chunk.text = "HIJACKED";
      RequestError error;
      error.message = "HIJACKED";
      send(encode(Accepted{id, epoch, 1, {}}));
      send(encode(Tokens{id, epoch, {chunk}}));
      send(encode(Cancel{id, epoch}));
      send(encode(Failed{id, epoch, error}));
      send(encode(Rejected{id, epoch, error}));
      send(encode(Done{id, epoch, {}}));
    }
  }

  // Waits for room in the socket, not for the router to like it.
  void send(const std::vector<std::byte>& frame) {
    const int64_t until_ns = monotonic_ns() + kPatienceNs;
    while (!dialer_->send(frame)) {
      if (monotonic_ns() > until_ns) give_up("a frame could not be sent: " + dialer_->problem());
      listen();
    }
  }

  void listen() {
    pollfd fd{dialer_->poll_fd(), POLLIN, 0};
    poll(&fd, 1, 5);
    while (dialer_->receive(64, [&](std::vector<std::byte>&& frame) { take(frame); }) > 0) {
    }
    if (dialer_->connected() != connected_) {
      connected_ = dialer_->connected();
      note(connected_ ? "connected" : "disconnected");
    }
    if (dialer_->problem() != problem_) {
      problem_ = dialer_->problem();
      if (!problem_.empty()) note("problem", problem_);
    }
  }
  void take(const std::vector<std::byte>& frame) {
    const Result<PoolMessage> message = decode(frame);
    if (!message) return;
    if (std::holds_alternative<Welcome>(*message)) note("welcome");
    if (const auto* submit = std::get_if<Submit>(&*message)) note("submit", submit->request.id);
    if (const auto* cancel = std::get_if<Cancel>(&*message)) note("cancel", cancel->id);
  }
  void note(const std::string& what, const std::string& detail = "") {
    ++seen_[what];
    say(detail.empty() ? what : what + " " + detail);
  }

  std::unique_ptr<NetContext> context_;
  std::unique_ptr<PoolDialer> dialer_;
  NodeHello hello_;
  NodeBeat beat_;
  std::map<std::string, int> seen_;
  std::string problem_;
  bool connected_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) usage("ENDPOINT ROUTER_PUBLIC_KEY_FILE KEY_FILE STEP... (see the source)");
  const auto router_key = load_public_key(argv[2]);
  if (!router_key) usage(router_key.message());
  const auto keys = load_curve_keys(argv[3]);
  if (!keys) usage(keys.message());
  Rogue rogue(argv[1], *router_key, *keys);
  for (int i = 4; i < argc; ++i) rogue.step(argv[i]);
  return 0;
}
