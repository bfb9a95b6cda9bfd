// updraft bench ipc: what handing a payload to another process costs here, by Updraft's rings and
// by what else a program could use, interleaved in one run. Each pair is two processes, each pinned
// to a core.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"

namespace updraft {

enum class IpcTest : uint8_t {
  kHand,    // round trip; the payload stays where it lies, 64 bytes of it are read and written
  kSparse,  // the same with 64 bytes after a pause of 1 ms: the peer sleeps
  kEcho,    // round trip; the payload is written, returned by the server, read
  kFill,    // one way, several under way; the payload is written and read
  kRate,    // one way, as many descriptors as go
};
const char* ipc_test_name(IpcTest test);

// The two ends of one kind of channel. Made before the fork; serve() and the client's functions run
// in different processes and open what they need of their own there. A failure in either ends its
// process (UPDRAFT_CHECK): the channel is of this machine alone.
class IpcPair {
 public:
  virtual ~IpcPair() = default;
  virtual void serve(IpcTest test) = 0;  // until it is killed
  virtual void start_client() {}         // in the client's process, after the fork
  virtual void round_trip(IpcTest test, uint64_t bytes) = 0;
  // One way, `count` payloads, the last one acknowledged. Only for pairs that offer kFill or kRate.
  virtual void send_many(IpcTest, uint64_t, uint64_t) {}
};

struct IpcPeer {
  std::string name;
  bool spins = false;
  std::vector<IpcTest> tests;
  std::function<Result<std::unique_ptr<IpcPair>>(uint64_t bytes)> make;
};
std::vector<IpcPeer> ipc_peers();  // the first is Updraft, spinning

struct IpcBenchConfig {
  std::vector<uint64_t> bytes = {64, 4096, 65536, 1 << 20, 16 << 20, 64 << 20};
  int rounds = 5;
  int64_t sample_ns = 25'000'000;  // of one line in one round
  int client_core = 0;
  int server_core = 1;
};

struct IpcLine {
  IpcTest test = IpcTest::kHand;
  std::string peer;
  bool spins = false;
  uint64_t bytes = 0;
  double p50_us = 0;  // medians of the rounds; one way: time per payload
  double p99_us = 0;  // 0: one way
  double per_s = 0;
  double gb_per_s = 0;  // payload, both ways counted for kEcho; 0 where it does not move
};

// Runs every peer's tests, peers next to each other inside a round. Errors: a core that is not
// there, shared memory.
Result<std::vector<IpcLine>> run_ipc_bench(const IpcBenchConfig& config);

// The handoff through a running edge daemon at `socket_path`, client side.
struct DaemonLine {
  bool spins = false;
  int requests = 0;
  double first_token_p50_us = 0;  // submit() to the first token in the client's hands
  double first_token_p99_us = 0;
  double handoff_p50_us = 0;  // that without what the node says it needed: both ways of the handoff
  double handoff_p99_us = 0;
};
Result<DaemonLine> run_daemon_bench(const std::string& socket_path, bool spins, int requests);

}  // namespace updraft
