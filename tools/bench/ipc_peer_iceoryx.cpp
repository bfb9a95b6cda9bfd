// Both sides as programs of their own, their daemon beside them, and what they do. See the header.
#include "tools/bench/ipc_peer_iceoryx.h"

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iceoryx_posh/popo/untyped_publisher.hpp>
#include <iceoryx_posh/popo/untyped_subscriber.hpp>
#include <iceoryx_posh/popo/wait_set.hpp>
#include <iceoryx_posh/runtime/posh_runtime.hpp>
#include <optional>

#include "common/base/clock.h"
#include "common/ipc/segment.h"

namespace updraft {
namespace {

using ipc::UniqueFd;

constexpr int64_t kStartNs = 20 * kNsPerSecond;  // for a daemon or a side to say something
constexpr int64_t kEndNs = 5 * kNsPerSecond;     // for one to end after it was asked
constexpr uint64_t kChunks = 8;  // of the pool; each side holds one, keeps one and takes one
constexpr uint64_t kChunkSpareBytes = 64;
constexpr uint32_t kLine = 64;
constexpr uint8_t kStop = 0xFF;  // first byte of the client's last payload
constexpr const char* kReady = "RouDi is ready for clients";

void relax() { __builtin_ia32_pause(); }

// --- the programs ---

std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<uint8_t>(c) < ' ') c = ' ';
  return text;
}

// A program that was started here, with what it writes; ended, if need be by force, when the object
// goes.
class Program {
 public:
  // `core` < 0: any.
  static Result<std::unique_ptr<Program>> start(const std::string& name,
                                                std::vector<std::string> command, int core) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return fail(std::string("a pipe: ") + std::strerror(errno));
    UniqueFd out(ends[0]), in(ends[1]);
    std::vector<char*> arguments;
    for (std::string& word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    cpu_set_t cores;
    CPU_ZERO(&cores);
    for (int i = 0; i < CPU_SETSIZE; ++i)
      if (core < 0 || i == core) CPU_SET(i, &cores);
    const pid_t pid = fork();
    if (pid < 0) return fail(std::string("fork: ") + std::strerror(errno));
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);  // on which they give back what they hold
      if (sched_setaffinity(0, sizeof cores, &cores) != 0) _exit(126);
      dup2(in.get(), STDOUT_FILENO);
      dup2(in.get(), STDERR_FILENO);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    return std::unique_ptr<Program>(new Program(pid, std::move(out), name));
  }
  ~Program() { (void)end(); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Until it has written `text`; an error: it ended before, or says nothing for too long.
  Result<void> wait_for(const std::string& text) {
    return read_until([&] { return said_.find(text) != std::string::npos; }, "\"" + text + "\"");
  }
  // What it wrote up to its end.
  Result<std::string> wait_for_end() {
    bool over = false;
    if (auto read = read_until([] { return false; }, "its end", &over); !read && !over)
      return read.error();
    if (const int status = end(); status != 0) return fail(text_of_end(status));
    return said_;
  }

 private:
  Program(pid_t pid, UniqueFd out, std::string name)
      : pid_(pid), out_(std::move(out)), name_(std::move(name)) {}

  template <typename Enough>
  Result<void> read_until(Enough enough, const std::string& what, bool* over = nullptr) {
    const int64_t until_ns = monotonic_ns() + kStartNs;
    while (!enough()) {
      const int64_t left_ms = (until_ns - monotonic_ns()) / kNsPerMs;
      pollfd entry{out_.get(), POLLIN, 0};
      if (left_ms <= 0 || ::poll(&entry, 1, static_cast<int>(left_ms)) == 0)
        return fail(name_ + ": waited too long for " + what + "; it said: " + one_line(said_));
      std::array<char, 4096> piece;
      const ssize_t got = read(out_.get(), piece.data(), piece.size());
      if (got > 0) {
        said_.append(piece.data(), static_cast<size_t>(got));
      } else if (got == 0 || errno != EINTR) {
        if (over != nullptr) *over = true;
        return fail(name_ + " ended before " + what + "; it said: " + one_line(said_));
      }
    }
    return {};
  }
  // Asks it to end unless it has; returns its wait status.
  int end() {
    if (pid_ < 0) return status_;
    const int64_t until_ns = monotonic_ns() + kEndNs;
    // Its output is shut already when it ends by itself.
    for (bool asked = false; waitpid(pid_, &status_, WNOHANG) == 0; usleep(1000)) {
      if (!asked && !shut()) {
        kill(pid_, SIGTERM);
        asked = true;
      }
      if (monotonic_ns() > until_ns) kill(pid_, SIGKILL);
    }
    pid_ = -1;
    return status_;
  }
  bool shut() const {
    pollfd entry{out_.get(), POLLIN, 0};
    return ::poll(&entry, 1, 0) > 0 && (entry.revents & POLLHUP) != 0;
  }
  std::string text_of_end(int status) const {
    return name_ +
           (WIFSIGNALED(status) ? ": ended by signal " + std::to_string(WTERMSIG(status))
                                : ": status " + std::to_string(WEXITSTATUS(status))) +
           "; it said: " + one_line(said_);
  }

  pid_t pid_;
  UniqueFd out_;
  std::string name_;
  std::string said_;
  int status_ = 0;
};

std::string find_roudi() {
  const char* const path = std::getenv("PATH");
  std::string folders = path == nullptr ? "" : path;
  folders += std::string(":") + UPDRAFT_ICEORYX_BIN;
  for (size_t at = 0; at <= folders.size();) {
    const size_t end = std::min(folders.find(':', at), folders.size());
    const std::string file = folders.substr(at, end - at) + "/iox-roudi";
    if (file[0] == '/' && access(file.c_str(), X_OK) == 0) return file;
    at = end + 1;
  }
  return {};
}

// The daemon's settings: one pool, of chunks of one size. In memory, so that nothing stays behind
// whatever ends the bench; the daemon opens it by this process's descriptor.
Result<UniqueFd> roudi_config(uint64_t bytes) {
  const uint64_t size = (bytes + kChunkSpareBytes + kLine - 1) / kLine * kLine;
  const std::string text =
      "[general]\nversion = 1\n[[segment]]\n[[segment.mempool]]\nsize = " + std::to_string(size) +
      "\ncount = " + std::to_string(kChunks) + "\n";
  UniqueFd file(memfd_create("updraft-bench-roudi", MFD_CLOEXEC));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return fail(std::string("RouDi's settings in memory: ") + std::strerror(errno));
  return file;
}

// Under which names the runtime of a side keeps its socket and its lock.
std::string side_name(const char* side, pid_t bench) {
  return std::string("updraft-bench-") + side + "-" + std::to_string(bench);
}

Result<IpcSample> measure(IpcTest test, bool spins, uint64_t bytes, const IpcBenchConfig& config) {
  const std::string roudi_path = find_roudi();
  if (roudi_path.empty()) return fail("no program iox-roudi in PATH or in " UPDRAFT_ICEORYX_BIN);
  const Result<UniqueFd> settings = roudi_config(bytes);
  if (!settings) return settings.error();
  const std::string settings_path =
      "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(settings->get());
  auto roudi = Program::start(roudi_path, {roudi_path, "-c", settings_path, "-l", "warning"}, -1);
  if (!roudi) return roudi.error();
  if (auto ready = (*roudi)->wait_for(kReady); !ready) return ready.error();
  const auto side = [&](const char* name, int core) {
    return Program::start(std::string("iceoryx's ") + name,
                          {"/proc/self/exe", "bench", "ipc", "--iceoryx-side",
                           std::string(name) + "," + std::to_string(static_cast<int>(test)) + "," +
                               std::to_string(int{spins}) + "," + std::to_string(bytes) + "," +
                               std::to_string(config.sample_ns)},
                          core);
  };
  auto server = side("server", config.server_core);
  if (!server) return server.error();
  auto client = side("client", config.client_core);
  if (!client) return client.error();
  const Result<std::string> said = (*client)->wait_for_end();
  if (!said) return said.error();
  if (auto ended = (*server)->wait_for_end(); !ended) return ended.error();
  IpcSample sample;
  const size_t at = said->find("figures ");
  if (at == std::string::npos || std::sscanf(said->c_str() + at, "figures %lf %lf %lf",
                                             &sample.p50_us, &sample.p99_us, &sample.per_s) != 3)
    return fail("the client's side has no figures; it said: " + one_line(*said));
  return sample;
}

// --- what a side does ---

// One side's two ways: what it sends on and what it listens to.
class Side {
 public:
  Side(const char* in, const char* out, bool spins, uint64_t bytes)
      : out_({"Updraft", "bench", iox::capro::IdString_t(iox::cxx::TruncateToCapacity, out)},
             one_ahead()),
        in_({"Updraft", "bench", iox::capro::IdString_t(iox::cxx::TruncateToCapacity, in)}),
        spins_(spins),
        bytes_(static_cast<uint32_t>(bytes)) {
    if (!spins_)
      waiting_.attachState(in_, iox::popo::SubscriberState::HAS_DATA).or_else([](auto&) {
        die("the wait set does not take the subscriber");
      });
  }

  // Until each hears the other.
  void meet() {
    const int64_t until_ns = monotonic_ns() + kStartNs / 2;
    while (!out_.hasSubscribers() ||
           in_.getSubscriptionState() != iox::SubscribeState::SUBSCRIBED) {
      if (monotonic_ns() > until_ns) die("the other side does not come");
      usleep(1000);
    }
  }
  // A payload of which 64 bytes are written; the rest stays as it lies.
  void give(uint8_t value) {
    out_.loan(bytes_)
        .and_then([&](void* chunk) {
          std::memset(chunk, value, kLine);
          out_.publish(chunk);
        })
        .or_else([](auto&) { die("no chunk to be had"); });
  }
  // The other side's next payload, 64 bytes of it read; its first byte.
  uint8_t take() {
    for (;;) {
      std::optional<uint8_t> first;
      in_.take().and_then([&](const void* chunk) {
        uint64_t words[kLine / sizeof(uint64_t)];
        std::memcpy(words, chunk, sizeof words);
        uint64_t sum = 0;
        for (const uint64_t word : words) sum += word;
        // Keeps the reads: the compiler must believe that the sum is used.
        asm volatile("" : : "r"(sum) : "memory");
        first = static_cast<uint8_t>(words[0]);
        in_.release(chunk);
      });
      if (first) return *first;
      if (spins_)
        relax();
      else
        (void)waiting_.wait();
    }
  }
  [[noreturn]] static void die(const char* why) {
    std::fprintf(stderr, "%s\n", why);
    std::_Exit(1);
  }

 private:
  static iox::popo::PublisherOptions one_ahead() {
    iox::popo::PublisherOptions options;
    options.subscriberTooSlowPolicy = iox::popo::ConsumerTooSlowPolicy::WAIT_FOR_CONSUMER;
    return options;
  }
  iox::popo::UntypedPublisher out_;
  iox::popo::UntypedSubscriber in_;
  iox::popo::WaitSet<1> waiting_;
  const bool spins_;
  const uint32_t bytes_;
};

// The client's end, in the process that measures.
class IceoryxPair final : public IpcPair {
 public:
  explicit IceoryxPair(Side& side) : side_(side) {}
  void serve(IpcTest) override {}  // a program of its own
  void round_trip(IpcTest, uint64_t) override {
    value_ = static_cast<uint8_t>((value_ + 1) % kStop);
    side_.give(value_);
    if (side_.take() != value_) Side::die("another answer than the one waited for");
  }

 private:
  Side& side_;
  uint8_t value_ = 0;
};

}  // namespace

std::vector<IpcPeer> iceoryx_peers() {
  using enum IpcTest;
  const auto peer = [](bool spins, std::vector<IpcTest> tests) {
    IpcPeer out{"iceoryx", spins, std::move(tests), {}};
    out.measure = [spins](IpcTest test, uint64_t bytes, const IpcBenchConfig& config) {
      return measure(test, spins, bytes, config);
    };
    return out;
  };
  return {peer(true, {kHand}), peer(false, {kHand, kSparse})};
}

int run_iceoryx_side(const std::string& what) {
  char side[8];
  int test = 0, spins = 0;
  unsigned long long bytes = 0;
  long long sample_ns = 0;
  if (std::sscanf(what.c_str(), "%7[a-z],%d,%d,%llu,%lld", side, &test, &spins, &bytes,
                  &sample_ns) != 5)
    return 2;
  const std::string name = side_name(side, getppid());
  iox::runtime::PoshRuntime::initRuntime(
      iox::RuntimeName_t(iox::cxx::TruncateToCapacity, name.c_str()));
  const bool client = std::strcmp(side, "client") == 0;
  Side mine(client ? "answers" : "questions", client ? "questions" : "answers", spins != 0, bytes);
  mine.meet();
  if (!client) {
    for (uint8_t value = 0; (value = mine.take()) != kStop;) mine.give(value);
    return 0;
  }
  IceoryxPair pair(mine);
  const IpcSample sample = measure_round_trips(pair, static_cast<IpcTest>(test), bytes, sample_ns);
  mine.give(kStop);
  std::printf("figures %.6g %.6g %.6g\n", sample.p50_us, sample.p99_us, sample.per_s);
  return 0;
}

}  // namespace updraft
