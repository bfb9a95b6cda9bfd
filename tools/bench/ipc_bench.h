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
  kIdle,    // the server waits and nothing comes: the processor time that it takes
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

struct IpcSample {
  double p50_us = 0;
  double p99_us = 0;
  double per_s = 0;
  double cpu_share = 0;
};
// Round trips for about `budget_ns` (four times that where each waits first).
IpcSample measure_round_trips(IpcPair& pair, IpcTest test, uint64_t bytes, int64_t budget_ns);

struct IpcBenchConfig;
struct IpcPeer {
  std::string name;
  bool spins = false;
  std::vector<IpcTest> tests;
  std::function<Result<std::unique_ptr<IpcPair>>(uint64_t bytes)> make;
  // Instead of make, for a peer whose two sides are programs of their own. An error: it cannot be
  // had here, or broke.
  std::function<Result<IpcSample>(IpcTest test, uint64_t bytes, const IpcBenchConfig& config)>
      measure = {};
};
std::vector<IpcPeer> ipc_peers();  // the first is Updraft, spinning

struct IpcBenchConfig {
  std::vector<uint64_t> bytes = {64, 4096, 65536, 1 << 20, 16 << 20, 64 << 20};
  int rounds = 5;
  int64_t sample_ns = 25'000'000;  // of one line in one round
  int client_core = 0;
  int server_core = 1;
  // Told once of each peer that measures by itself and could not; its rows are left out.
  std::function<void(const std::string& peer, const std::string& why)> on_left_out;
};

struct IpcLine {
  IpcTest test = IpcTest::kHand;
  std::string peer;
  bool spins = false;
  uint64_t bytes = 0;
  double p50_us = 0;  // medians of the rounds; one way: time per payload
  double p99_us = 0;  // 0: one way
  double per_s = 0;
  double gb_per_s = 0;   // payload, both ways counted for kEcho; 0 where it does not move
  double cpu_share = 0;  // kIdle: of one core, by the server
};

// Runs every peer's tests, peers next to each other inside a round. Errors: a core that is not
// there, shared memory.
Result<std::vector<IpcLine>> run_ipc_bench(const IpcBenchConfig& config);

// The handoff through a running edge daemon, client side, with requests for one token.
enum class DaemonPace : uint8_t {
  kBusy,      // one request right after the other, the client spins
  kSparse,    // 1 ms of silence before each: the daemon sleeps; the client spins
  kBlocking,  // the same, and the client sleeps until an event comes
};
const char* daemon_pace_name(DaemonPace pace);

struct DaemonLine {
  DaemonPace pace = DaemonPace::kBusy;
  int requests = 0;
  // Both processes read the same clock (the node says when it received the request).
  double first_step_p50_us = 0, first_step_p99_us = 0;    // submit() until the first step begins
  double first_token_p50_us = 0, first_token_p99_us = 0;  // submit() until next() gives the token
  double token_back_p50_us = 0, token_back_p99_us = 0;    // engine's token until next() gives it
};
Result<DaemonLine> run_daemon_bench(const std::string& socket_path, DaemonPace pace, int requests);

// The share of one core that the daemon at `socket_path` takes while one session is open and idle.
Result<double> measure_idle_daemon(const std::string& socket_path, int64_t for_ns);

}  // namespace updraft
