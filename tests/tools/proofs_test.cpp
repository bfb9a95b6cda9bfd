// What Updraft promises and where each promise is proved: the complaints of the peers' users, the
// threats seen at the peers, the bounds that hold in trouble, and what goes wrong on GPUs. A
// complaint has a test that carries its peer and number in its name (or, in Python, in its
// docstring); threats and promises name their tests here. A test that is renamed or removed fails
// this one, so that none gets lost.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/shared_data.h"

namespace fs = std::filesystem;
using updraft::testing::repo_file;

namespace {

struct Complaint {
  const char* who;   // as test names spell it
  const char* what;  // hurt
};
const std::vector<Complaint> kComplaints = {
    {"SGLang #25811", "a 4xx opened the breaker"},
    {"SGLang PR 39464", "a busy 503 opened it"},
    {"SGLang PR 14532", "cache misses drew more of them to one node"},
    {"SGLang dead worker", "cost 10 failures and 3.08 s"},
    {"SGLang window_duration", "was configured and never read"},
    {"SGLang half-open", "let everyone in"},
    {"llm-d #2408", "staleness blocked a pool of one node"},
    {"llm-d #2345", "no fail-over between pools"},
    {"Dynamo PR 12138", "a mark of overload was never taken back"},
    {"Dynamo PR 7754", "two publishers wrote one field"},
    {"Dynamo #589", "several routers herded"},
    {"Dynamo #13088", "a cut stream hung until the client left"},
    {"Dynamo #8605", "no API keys"},
    {"production-stack #634", "cancels were lost"},
    {"production-stack #749", "one dead backend hung all"},
    {"production-stack #448", "a crash at a thousand requests at once"},
    {"LiteLLM #40404", "a cut stream never fell back"},
    {"LiteLLM #37140", "what was not streamed was never cancelled"},
    {"LiteLLM #27954", "memory grew under load"},
    {"GPUStack #1576", "clock skew was read as a lost heartbeat"},
    {"GPUStack #5935", "all nodes were given up at once"},
    {"GPUStack #4459", "the fallback was not taken"},
    {"GPUStack #4815", "the fallback was not taken"},
    {"llama-swap #887", "the third request was lost"},
    {"Paddler #60", "the model's name was ignored"},
    {"Paddler #41", "no retry"},
    {"Ollama #11889", "went on with a prompt whose client had left"},
    {"Ollama #7758", "the queue's limit was ignored"},
    {"Ray Serve #42948", "a stale value overwrote a newer one"},
    {"Ray PR 61755", "an increment without its decrement"},
    {"Triton #3207", "a crash when memory in use was unregistered"},
    {"Triton #2274", "shared memory leaked"},
    {"Triton #7481", "shared memory leaked"},
    {"Triton CVE-2025-23319", "code execution through leaked names of memory"},
    {"Triton CVE-2025-23320", "an error that told the name of memory"},
    {"Triton CVE-2025-23334", "reads outside of memory through it"},
};

struct Proved {
  const char* what;
  std::vector<std::string> tests;
};
const std::vector<Proved> kThreats = {
    {"router memory (vLLM CVE-2025-48956, CVE-2026-34756; Triton CVE-2025-23310, CVE-2025-23311)",
     {"strangers cannot make the server hold bodies, and those with a key only so many",
      "floods of heads, chunks, requests and connections end by themselves",
      "hundreds of clients that send a byte now and then hold nobody up",
      "bodies beyond the common budget are refused, and the budget comes back",
      "limits on live requests and on what they hold are answered, not exceeded"}},
    {"numeric fields (llama.cpp CVE-2026-21869)",
     {"every number that a client may send is refused when it is out of any range",
      "every integer field refuses what does not fit, naming field and value",
      "every real field refuses what is out of its range"}},
    {"authentication (vLLM CVE-2026-48746, CVE-2025-59425; libjwt CVE-2026-44699)",
     {"every route answers every role as promised",
      "a route that names no role is an administrator's, and what is not listed is not there",
      "every route of the administrators is for them alone, and on their listener alone",
      "every token of the vectors is accepted or refused as it should be",
      "keys of the wrong kind are refused when they are read",
      "a known key says who it is, everything else is refused"}},
    {"browsers (Ollama CVE-2024-28224)",
     {"a foreign Host is forbidden, the configured ones are not",
      "unknown routes, methods and kinds of content are refused by name"}},
    {"other tenants (vLLM CVE-2025-46570, GHSA-rm76-4mrf-v9r8)",
     {"pages whose hashes collide are told apart by ids and parent",
      "one tenant's pages are not another's, even when every hash is the same",
      "tenants and models have names of their own", "another tenant's cache is nobody's reason"}},
    {"the pool (vLLM CVE-2025-32444, -30165, -30202; SGLang CVE-2026-3059, -3060)",
     {"an unknown key is refused, and comes in once it is allowed",
      "a listener with an empty allow-list refuses everybody",
      "a plain connection without CURVE gets nowhere",
      "a node may not call itself by the name of another key of the allow-list",
      "test_another_nodes_request_cannot_be_hijacked",
      "test_a_node_that_boasts_and_never_answers_loses_the_request_to_another",
      "test_absurd_beats_are_refused_each_and_attract_no_work",
      "speeds that no node has are cut, so that a boast does not draw the pool's work"}},
    {"the wire (llama.cpp rpc-server #13067)",
     {"truncated and flipped frames end in an error or in values within their ranges",
      "frames that are not ours are refused",
      "many small fields that share one large vector are refused before they are copied",
      "test_truncated_random_and_oversized_frames"}},
    {"shared memory (Triton CVE-2025-23319 and what followed; vLLM #29565)",
     {"the seals refuse truncation by anybody", "every lie in the header is named",
      "impossible ring positions, slots and records end that session only",
      "a client that rewrites its request while the daemon reads it gets an answer or an error, "
      "never more",
      "another user is refused, whatever the socket's mode says"}},
    {"model files (llama.cpp CVE-2025-53630, CVE-2026-27940, CVE-2026-33298; Ollama CVE-2026-7482; "
     "SGLang CVE-2026-5760)",
     {"a file cut at any byte is refused and never read beyond its end",
      "a byte changed anywhere in the header never crashes",
      "counts that the file cannot hold are refused before anything is allocated",
      "arrays larger than the file are refused, also when count times size wraps",
      "tensors outside the file, and sizes whose bytes or sum wrap, are refused",
      "shapes with too many, zero or overflowing dimensions are refused"}},
    {"cost (OWASP LLM10)",
     {"a key at twice what the pool serves leaves another key's p95 within a fifth",
      "a key's requests per minute: then 429 with a time to wait, others are not touched",
      "tokens are charged before and settled after; an answer that never began costs none",
      "requests at once: the next is refused until one ends, also when its client leaves"}},
};

const std::vector<Proved> kPromises = {
    {"every accepted request ends exactly once, by its deadline + 1 s",
     {"under random losses, lies, repeats and cancels every request ends exactly once and nothing "
      "is left behind",
      "every planted bug is caught by the invariant that is there for it",
      "a running request that outlives its deadline ends within a second and is cancelled on its "
      "node",
      "test_every_request_ends_once_and_all_is_back_whatever_happens"}},
    {"one live generation per request id; Idempotency-Key: 409 in flight, 422 on a changed body",
     {"the same request id twice at a time is refused",
      "tokens of another node or an older epoch are dropped",
      "a newer epoch replaces the older one: the new one begins when the old one has ended, its "
      "events are dropped",
      "a key runs once, is in flight, then stored, then forgotten",
      "while a request is answered its key is taken; when its client leaves it is free again",
      "the same request again gets the same answer, whole or streamed, without another run"}},
    {"node death in a stream: noticed within 3 s, at most 3 nodes, no gap, no repeat",
     {"a node killed while it streams ends the stream with an error within three seconds",
      "a node killed before its first token is replaced by another",
      "a request is tried on at most two more nodes",
      "a gap in the offsets ends the stream as a fault of the node, and cancels it there",
      "a repeated chunk is dropped, one that repeats with other tokens is a fault",
      "test_a_killed_node_ends_its_streams_with_a_typed_error_within_3_seconds"}},
    {"router restart: its pool is back within two beats, nodes come back by themselves",
     {"a router that has just started has its pool back with each node's first beat",
      "beats come at the interval, at once after the welcome, and soon after a change",
      "a node reconnects after a router restart on the same port",
      "a restarted router has its pool back by itself",
      "test_a_restarted_router_gets_its_nodes_back"}},
    {"edge offline: short requests go on, long ones are 503 + Retry-After",
     {"test_the_edge_serves_what_fits_when_the_router_is_away",
      "too long with the pool away is 503 with Retry-After, without a pool the caller's error with "
      "both numbers"}},
    {"bounded memory: shed at 95 %, refuse at 98 %; 10,000 connections",
     {"a router whose memory fills sheds at 95 and refuses at 98 percent, and says so",
      "a router short of memory takes interactive requests alone, then none, and keeps what it has",
      "while memory is almost full no body is read; streams, health and metrics go on",
      "while memory is almost full few new connections are held, the others are turned away",
      "a node whose memory fills grants nothing, then takes nothing, and finishes what it has",
      "a node whose memory is almost full bounces what it granted before, and runs what it has",
      "a gateway that is short of memory sends up what may rise and refuses the rest",
      "limits on live requests and on what they hold are answered, not exceeded",
      "one connection too many gets a 503, and the others stay",
      "idle connections cost little memory",
      "thousands of requests leave no memory behind in the router (LiteLLM #27954)"}},
    {"retries cannot amplify: 1.1x at most when all nodes fail",
     {"retries of failures do not multiply the load when all nodes fail"}},
    {"deadlines: remaining ms per hop, expired work is never dispatched",
     {"the remaining time travels with the request",
      "work whose time is over is never sent, however long it waited",
      "a deadline that passes between two ticks is not dispatched either"}},
    {"cancel frees KV pages within a step; a disconnect is noticed within 500 ms",
     {"cancel and deadline end a sequence at the next plan and free its pages",
      "cancel ends a running and a waiting sequence and gives the pages back",
      "a client that leaves its stream is noticed within 500 ms and its request cancelled",
      "test_mid_stream"}},
    {"slow reader: 256 KiB a stream, 10 s without a byte, siblings unaffected",
     {"a reader slower than the model loses its stream, not the server its memory",
      "a reader that takes nothing is closed after the stall time",
      "the router's send to a reader that takes nothing says full, and others are not held up",
      "a client that stopped reading loses its stream after the stall's limit"}},
    {"drain: new work elsewhere or 503 at once, what runs ends, or moves when the time is over",
     {"a drained node finishes what it has and gets nothing new",
      "draining says so, and what outlasts the grace is failed towards the router",
      "a rolling restart of every node fails no request", "test_a_stopped_node_drains_first"}},
    {"disk full: never a crash",
     {"an act whose line finds a full disk is done all the same, and told in the daemon's log",
      "test_a_full_disk_under_the_logs_stops_no_daemon"}},
    {"client crash: its shared memory is reclaimed within a second",
     {"a killed client that could have come back is reclaimed within a second",
      "clients killed at random moments leave no descriptor, no map, no request and no file "
      "(Triton #2274, Triton #7481)"}},
};

std::string read_text(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Adjacent string literals from `at` on, as one text without escapes.
std::string literal_at(const std::string& text, size_t at) {
  std::string out;
  while (at < text.size()) {
    const size_t quote = text.find_first_not_of(" \n", at);
    if (quote == std::string::npos || text[quote] != '"') break;
    for (at = quote + 1; at < text.size() && text[at] != '"'; ++at) {
      if (text[at] == '\\') ++at;
      out += text[at];
    }
    ++at;
  }
  return out;
}

// What goes wrong in CUDA engines.
const std::vector<Proved> kPitfalls = {
    {"sums in bfloat16, or of 14 bits in fp8",
     {"13,696 columns are summed as in double precision",
      "13,696 columns are summed by the tile product as in double precision",
      "13,696 columns are summed by the warpgroup product as tensor cores sum them",
      "tensor cores cut off what a float does not hold"}},
    {"NaN in padding times zero",
     {"decode attention equals softmax in double precision, whatever the schedule",
      "prefill attention equals softmax in double precision, whatever the schedule",
      "a row that is not finite is NaN, its neighbours are not",
      "packed weights are the file's, bit for bit, also beside padding"}},
    {"a graph replays what was freed, or allocates while it is captured",
     {"graphs of a pool that was made anew do not reach into the old one",
      "two backends whose graphs take turns give what each gives alone",
      "a replayed step gives an eager one's bits, and a row alone those of a row in company"}},
    {"the library's first guess is not the fastest way",
     {"tuning keeps the fastest way of a shape",
      "a model that starts measures its products, the next one reads them"}},
    {"a page is freed, or used anew, under a step",
     {"two steps under way, pages used anew at once: each sequence gets its own tokens",
      "a device that runs ahead gives the tokens of one that is waited for, in random worlds"}},
    {"a module without code for the device",
     {"a module whose kernels do nothing on the device is refused when it is opened"}},
    {"a row's bits depend on its batch",
     {"a token alone gets the same bits as in any batch",
      "a row alone gets the same bits as beside others, on a device of any size",
      "a prompt has the same bits whole, in chunks, behind a prefix and beside others"}},
    {"offsets of pages in 32 bits",
     {"pages beyond 2^31 bytes and elements are found",
      "prefill reads pages beyond 2^31 bytes and elements",
      "warpgroup prefill reads pages beyond 2^31 bytes and elements"}},
    {"few rows leave most of the device idle",
     {"a matrix of few rows gives every multiprocessor a block, or every warp its least",
      "columns are split where tiles of outputs leave multiprocessors idle"}},
    {"a barrier or a wait that is missing",
     {"steps whose kernels overlap as far as they may give the bits of those that do not",
      "no order of warps, early or late copies change the warpgroup product's bits",
      "a product finds what threads wrote before a fence between them and it"}},
};

struct Tests {
  std::set<std::string> names;     // of cases and of Python's functions
  std::vector<std::string> texts;  // the same, Python's with their docstrings
};

Tests read_tests() {
  Tests tests;
  const auto add = [&](const std::string& name, const std::string& more) {
    tests.names.insert(name);
    tests.texts.push_back(name + more);
  };
  const std::regex function("def (test_\\w+)\\(self\\):(\\s+\"\"\"[^\"]*)?");
  for (const auto& entry : fs::recursive_directory_iterator(fs::path(repo_file("")) / "tests")) {
    const std::string file = entry.path().filename().string();
    if (file.ends_with("_test.cpp")) {
      const std::string text = read_text(entry.path());
      const std::string begin = "\nTEST_CASE(";
      for (size_t at = text.find(begin); at != std::string::npos; at = text.find(begin, at + 1))
        add(literal_at(text, at + begin.size()), "");
    } else if (file.starts_with("test_") && file.ends_with(".py")) {
      const std::string text = read_text(entry.path());
      for (std::sregex_iterator at(text.begin(), text.end(), function), end; at != end; ++at)
        add((*at)[1], (*at)[2]);
    }
  }
  return tests;
}

// `who` as words of their own: #41 is not #411.
bool names_complaint(const std::string& text, const std::string& who) {
  for (size_t at = text.find(who); at != std::string::npos; at = text.find(who, at + 1)) {
    const size_t after = at + who.size();
    if (after == text.size() || std::isalnum(static_cast<unsigned char>(text[after])) == 0)
      return true;
  }
  return false;
}

void check_proofs(const std::vector<Proved>& rows) {
  const Tests tests = read_tests();
  for (const Proved& row : rows) {
    CAPTURE(row.what);
    CHECK(!row.tests.empty());
    for (const std::string& test : row.tests)
      CHECK_MESSAGE(tests.names.count(test) == 1, std::string("there is no test '" + test + "'"));
  }
}

}  // namespace

TEST_CASE("tests are found by their names, also where these stand on several lines") {
  const Tests tests = read_tests();
  CHECK(tests.names.size() > 1000);
  CHECK(tests.names.count("tests are found by their names, also where these stand on several "
                          "lines") == 1);
  CHECK(names_complaint("no retry (Paddler #41)", "Paddler #41"));
  CHECK_FALSE(names_complaint("no retry (Paddler #411)", "Paddler #41"));
}

TEST_CASE("every complaint of the peers' users has a test that carries its number") {
  const Tests tests = read_tests();
  for (const Complaint& complaint : kComplaints) {
    bool found = false;
    for (const std::string& text : tests.texts) found |= names_complaint(text, complaint.who);
    CHECK_MESSAGE(
        found, std::string(std::string(complaint.who) + " (" + complaint.what + ") has no test"));
  }
}

TEST_CASE("every threat seen at the peers has its proof") { check_proofs(kThreats); }

TEST_CASE("every promise has its proof") { check_proofs(kPromises); }

TEST_CASE("what goes wrong on GPUs has its proof") { check_proofs(kPitfalls); }
