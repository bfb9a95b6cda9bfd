// The C ABI of the client library, called through libupdraft_client.so against a server in this
// process.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <thread>

#include "edge/client/updraft_client.h"
#include "tests/edge/client/c_program.h"
#include "tests/edge/client/echo_daemon.h"
#include "tests/support/images.h"

using namespace updraft;
using testing::EchoDaemon;

namespace {

struct Client {
  explicit Client(const EchoDaemon& daemon, uint32_t flags = 0, uint64_t payload_bytes = 1 << 20) {
    const int status =
        updraft_connect(daemon.socket().c_str(), "abi test", payload_bytes, flags, &session);
    REQUIRE_MESSAGE(status == UPDRAFT_OK, updraft_error_text());
  }
  ~Client() { updraft_close(session); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  const updraft_event* next() {
    const updraft_event* event = nullptr;
    const int got = updraft_next(session, 10000, &event);
    REQUIRE_MESSAGE(got == 1, updraft_error_text());
    return event;
  }
  // The text of request `id` up to its good end.
  std::string answer(uint64_t id) {
    std::string text;
    for (;;) {
      const updraft_event* event = next();
      if (event->request != id) continue;
      REQUIRE_MESSAGE(event->kind != UPDRAFT_FAILED, std::string(event->message));
      text.append(event->text, event->text_bytes);
      if (event->kind == UPDRAFT_FINISHED) return text;
    }
  }
  uint64_t submit(const updraft_request* request) {
    uint64_t id = 0;
    const int status = updraft_submit(session, request, &id);
    REQUIRE_MESSAGE(status == UPDRAFT_OK, updraft_error_text());
    CHECK(id != 0);
    return id;
  }
  updraft_session* session = nullptr;
};

struct Ask {
  explicit Ask(const char* model, std::string what = "hello") : text(std::move(what)) {
    updraft_request_set_text(request, "model", model);
    updraft_request_add_message(request, "user");
    updraft_request_add_text(request, text.data(), text.size());
  }
  ~Ask() { updraft_request_free(request); }
  Ask(const Ask&) = delete;
  Ask& operator=(const Ask&) = delete;
  std::string text;
  updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
};

}  // namespace

TEST_CASE("a C program hands images over, borrowed and placed, and reads them back") {
  EchoDaemon daemon;
  std::string image = testing::png_of_bytes(100000);
  for (size_t i = 33; i < image.size(); ++i) image[i] = static_cast<char>('!' + i % 90);
  const char* failed = run_c_program(daemon.socket().c_str(), image.data(), image.size());
  CHECK_MESSAGE(failed == nullptr, failed);
  const Request last = daemon.service.last();
  CHECK(last.messages.at(0).parts.at(0).mime == "image/png");
  CHECK(last.messages.at(0).parts.at(0).bytes == image);
}

TEST_CASE("every setting arrives as it was set") {
  EchoDaemon daemon;
  Client client(daemon);
  const Ask ask("echo");
  updraft_request* request = ask.request;
  for (const auto& [name, value] : {std::pair{"session", "s-1"},
                                    {"trace", "00-ab-cd-01"},
                                    {"tier", "cloud"},
                                    {"residency", "local-only"},
                                    {"priority", "bulk"}}) {
    CHECK(updraft_request_set_text(request, name, value) == UPDRAFT_OK);
  }
  for (const auto& [name, value] : {std::pair{"max_tokens", int64_t{5}},
                                    {"top_k", 6},
                                    {"seed", -1},
                                    {"n", 3},
                                    {"top_logprobs", 2},
                                    {"deadline_ms", 9000},
                                    {"logprobs", 1},
                                    {"ignore_eos", 1},
                                    {"enable_thinking", 0}}) {
    CHECK(updraft_request_set_integer(request, name, value) == UPDRAFT_OK);
  }
  for (const auto& [name, value] : {std::pair{"temperature", 0.25},
                                    {"top_p", 0.5},
                                    {"min_p", 0.125},
                                    {"repetition_penalty", 1.5},
                                    {"frequency_penalty", -0.5},
                                    {"presence_penalty", 0.75}}) {
    CHECK(updraft_request_set_number(request, name, value) == UPDRAFT_OK);
  }
  CHECK(updraft_request_add_stop(request, "END", 3) == UPDRAFT_OK);
  CHECK(updraft_request_add_logit_bias(request, 42, -7.0) == UPDRAFT_OK);
  client.answer(client.submit(request));
  const Request got = daemon.service.last();
  CHECK(got.hints.session == "s-1");
  CHECK(got.trace == "00-ab-cd-01");
  CHECK(got.hints.tier == Tier::kCloud);
  CHECK(got.hints.local_only);
  CHECK(got.hints.priority == Priority::kBulk);
  CHECK(got.sampling.max_tokens == 5);
  CHECK(got.sampling.top_k == 6);
  CHECK(got.sampling.seed == UINT64_MAX);
  CHECK(got.choice_count == 3);
  CHECK(got.sampling.top_logprobs == 2);
  CHECK(got.hints.deadline_ms == 9000);
  CHECK(got.sampling.logprobs);
  CHECK(got.sampling.ignore_eos);
  CHECK_FALSE(got.enable_thinking);
  CHECK(got.sampling.temperature == 0.25F);
  CHECK(got.sampling.top_p == 0.5F);
  CHECK(got.sampling.min_p == 0.125F);
  CHECK(got.sampling.repetition_penalty == 1.5F);
  CHECK(got.sampling.frequency_penalty == -0.5F);
  CHECK(got.sampling.presence_penalty == 0.75F);
  CHECK(got.sampling.stop == std::vector<std::string>{"END"});
  CHECK(got.sampling.logit_bias == std::vector<std::pair<int32_t, float>>{{42, -7.0F}});
}

TEST_CASE("unknown settings and values are refused by name") {
  const Ask ask("echo");
  CHECK(updraft_request_set_number(ask.request, "heat", 1) == UPDRAFT_ERR_INVALID);
  CHECK(std::string(updraft_error_text()).find("\"heat\"") != std::string::npos);
  CHECK(updraft_request_set_integer(ask.request, "max_tokens", int64_t{1} << 40) ==
        UPDRAFT_ERR_INVALID);
  CHECK(updraft_request_set_integer(ask.request, "echo", 2) == UPDRAFT_ERR_INVALID);
  CHECK(updraft_request_set_text(ask.request, "priority", "now") == UPDRAFT_ERR_INVALID);
  CHECK(updraft_request_new(2) == nullptr);
}

TEST_CASE("a completion carries prompts as text or as token ids") {
  EchoDaemon daemon;
  Client client(daemon);
  updraft_request* request = updraft_request_new(UPDRAFT_COMPLETION);
  const int32_t ids[] = {5, 6, 7};
  CHECK(updraft_request_add_prompt_ids(request, ids, 3) == UPDRAFT_OK);
  CHECK(updraft_request_set_integer(request, "echo", 1) == UPDRAFT_OK);
  client.answer(client.submit(request));
  CHECK(daemon.service.last().prompt_ids == std::vector<std::vector<int32_t>>{{5, 6, 7}});
  CHECK(daemon.service.last().model == "echo");  // the daemon's first, since none was named
  CHECK(daemon.service.last().echo);
  updraft_request_free(request);
}

TEST_CASE("placed prompts are taken from where they lie: text, and ids of 4 bytes") {
  EchoDaemon daemon;
  Client client(daemon, 0, 4 << 20);
  void* piece = nullptr;
  REQUIRE(updraft_allocate(client.session, 400000, &piece) == UPDRAFT_OK);
  std::vector<int32_t> ids(100000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7);
  std::memcpy(piece, ids.data(), 400000);
  updraft_request* request = updraft_request_new(UPDRAFT_COMPLETION);
  CHECK(updraft_request_add_placed_prompt_ids(request, static_cast<int32_t*>(piece), ids.size()) ==
        UPDRAFT_OK);
  client.answer(client.submit(request));
  CHECK(daemon.service.last().prompt_ids == std::vector<std::vector<int32_t>>{ids});
  updraft_request_free(request);

  const std::string text(300000, 'p');
  REQUIRE(updraft_allocate(client.session, text.size(), &piece) == UPDRAFT_OK);
  std::memcpy(piece, text.data(), text.size());
  request = updraft_request_new(UPDRAFT_COMPLETION);
  CHECK(updraft_request_add_placed_prompt(request, piece, text.size()) == UPDRAFT_OK);
  client.answer(client.submit(request));
  CHECK(daemon.service.last().prompts == std::vector<std::string>{text});
  updraft_request_free(request);

  // Borrowed ones over the frame's limit are moved into shared memory by the library.
  // An echo of so much would not fit the completion ring.
  daemon.service.set_script({Finished{}});
  const std::string large(1500000, 'q');
  request = updraft_request_new(UPDRAFT_COMPLETION);
  updraft_request_set_text(request, "model", "script");
  CHECK(updraft_request_add_prompt(request, large.data(), large.size()) == UPDRAFT_OK);
  client.answer(client.submit(request));
  const bool whole = daemon.service.last().prompts == std::vector<std::string>{large};
  CHECK(whole);
  updraft_request_free(request);
}

TEST_CASE("events carry places, tokens, logprobs, usage and failures") {
  EchoDaemon daemon;
  TokenChunk chunk;
  chunk.choice = 1;
  chunk.ids = {11, 12};
  chunk.text = "ab";
  chunk.finish = FinishReason::kLength;
  chunk.logprobs = {{{11, -0.5F, "a"}, {{11, -0.5F, "a"}, {13, -1.5F, "c"}}},
                    {{12, -0.25F, "b"}, {{12, -0.25F, "b"}}}};
  Finished finished;
  finished.usage = {3, 2, 1};
  finished.timings = {10, 20, 30};
  daemon.service.set_script({chunk, finished});
  Client client(daemon);
  const Ask ask("script");
  uint64_t id = client.submit(ask.request);
  const updraft_event* event = client.next();
  CHECK(event->kind == UPDRAFT_STARTED);
  CHECK(event->request == id);
  CHECK(std::string(event->node) == "echo");
  CHECK(std::string(event->model) == "script");
  CHECK(std::string(event->decision) == "it is here");
  CHECK(event->tier == UPDRAFT_TIER_EDGE);
  CHECK(event->prompt_tokens == 7);
  event = client.next();
  REQUIRE(event->kind == UPDRAFT_TOKENS);
  CHECK(event->choice == 1);
  CHECK(event->finish == UPDRAFT_FINISH_LENGTH);
  CHECK(std::vector<int32_t>(event->ids, event->ids + event->id_count) ==
        std::vector<int32_t>{11, 12});
  CHECK(std::string(event->text) == "ab");
  REQUIRE(event->logprob_count == 2);
  CHECK(event->logprobs[0].chosen.logprob == -0.5F);
  REQUIRE(event->logprobs[0].top_count == 2);
  CHECK(event->logprobs[0].top[1].id == 13);
  CHECK(std::string(event->logprobs[0].top[1].text) == "c");
  REQUIRE(event->logprobs[1].top_count == 1);
  CHECK(event->logprobs[1].top[0].id == 12);
  event = client.next();
  REQUIRE(event->kind == UPDRAFT_FINISHED);
  CHECK(event->prompt_tokens == 3);
  CHECK(event->completion_tokens == 2);
  CHECK(event->cached_tokens == 1);
  CHECK(event->queued_ns == 10);
  CHECK(event->first_token_ns == 20);
  CHECK(event->total_ns == 30);

  RequestError error = error_of(ErrorCode::kContextLength, "too long", 250);
  error.param = "messages";
  error.prompt_tokens = 600;
  error.limit_tokens = 512;
  daemon.service.set_script({error});
  id = client.submit(ask.request);
  do {
    event = client.next();
  } while (event->kind == UPDRAFT_STARTED);
  REQUIRE(event->kind == UPDRAFT_FAILED);
  CHECK(std::string(event->error_code) == "context_length_exceeded");
  CHECK(std::string(event->message) == "too long");
  CHECK(std::string(event->param) == "messages");
  CHECK(event->http_status == 400);
  CHECK(event->retry_after_ms == 250);
  CHECK(event->prompt_tokens == 600);
  CHECK(event->limit_tokens == 512);
  CHECK(std::string(event->text).empty());
}

TEST_CASE("connecting fails with the status that says why") {
  updraft_session* session = nullptr;
  CHECK(updraft_connect("/nowhere/edge.sock", nullptr, 0, 0, &session) == UPDRAFT_ERR_NO_DAEMON);
  CHECK(std::string(updraft_error_text()).find("/nowhere/edge.sock") != std::string::npos);
  CHECK(session == nullptr);
  CHECK(updraft_connect(nullptr, nullptr, uint64_t{1} << 41, 0, &session) == UPDRAFT_ERR_INVALID);
  CHECK(updraft_connect(nullptr, nullptr, 0, 64, &session) == UPDRAFT_ERR_INVALID);
  LocalServerConfig one;
  one.sessions_max = 1;
  EchoDaemon daemon(one);
  Client first(daemon);
  CHECK(updraft_connect(daemon.socket().c_str(), nullptr, 0, 0, &session) == UPDRAFT_ERR_REFUSED);
  CHECK(std::string(updraft_error_text()).find("all 1 sessions") != std::string::npos);
}

TEST_CASE("shared memory: its end, its owner, its one use") {
  EchoDaemon daemon(testing::without_growth());
  Client client(daemon);
  void* piece = nullptr;
  CHECK(updraft_allocate(client.session, 0, &piece) == UPDRAFT_ERR_INVALID);
  CHECK(updraft_allocate(client.session, 8 << 20, &piece) == UPDRAFT_ERR_NO_ROOM);
  REQUIRE(updraft_allocate(client.session, 900000, &piece) == UPDRAFT_OK);
  CHECK(reinterpret_cast<uintptr_t>(piece) % 64 == 0);
  // A borrowed text that finds no room leaves everything as it was.
  const Ask large("echo", std::string(500000, 'l'));
  uint64_t id = 0;
  CHECK(updraft_submit(client.session, large.request, &id) == UPDRAFT_ERR_NO_ROOM);
  int stranger = 0;
  CHECK(updraft_release(client.session, &stranger) == UPDRAFT_ERR_INVALID);
  updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
  updraft_request_add_message(request, "user");
  std::memset(piece, 'p', 900000);
  updraft_request_add_placed_text(request, piece, 900001);
  CHECK(updraft_submit(client.session, request, &id) == UPDRAFT_ERR_INVALID);
  updraft_request_free(request);
  request = updraft_request_new(UPDRAFT_CHAT);
  updraft_request_add_message(request, "user");
  updraft_request_add_placed_text(request, piece, 1000);
  updraft_request_add_placed_text(request, piece, 1000);
  CHECK(updraft_submit(client.session, request, &id) == UPDRAFT_ERR_INVALID);  // twice
  updraft_request_free(request);
  // Round after round: each answer gives the piece back.
  for (int round = 0; round < 5; ++round) {
    request = updraft_request_new(UPDRAFT_CHAT);
    updraft_request_add_message(request, "user");
    updraft_request_add_placed_text(request, piece, 1000);
    CHECK(client.answer(client.submit(request)) == std::string(1000, 'p'));
    CHECK(updraft_release(client.session, piece) == UPDRAFT_ERR_INVALID);
    updraft_request_free(request);
    REQUIRE(updraft_allocate(client.session, 900000, &piece) == UPDRAFT_OK);
    std::memset(piece, 'p', 1000);
  }
  CHECK(updraft_release(client.session, piece) == UPDRAFT_OK);
  CHECK(client.answer(client.submit(large.request)) == large.text);
}

TEST_CASE("a full session takes more memory, and a one-off is sealed when it is submitted") {
  EchoDaemon daemon;
  Client client(daemon);  // 1 MiB to begin with
  std::vector<void*> pieces(10);
  for (void*& piece : pieces)
    REQUIRE(updraft_allocate(client.session, 900000, &piece) == UPDRAFT_OK);
  for (size_t i = 0; i < pieces.size(); ++i)
    std::memset(pieces[i], static_cast<int>('a' + i), 900000);
  updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
  updraft_request_add_message(request, "user");
  std::string expected;
  for (size_t i = 0; i < pieces.size(); ++i) {
    updraft_request_add_placed_text(request, pieces[i], 1000);
    expected += std::string(1000, static_cast<char>('a' + i));
  }
  CHECK(client.answer(client.submit(request)) == expected);
  updraft_request_free(request);
  void* once = nullptr;
  CHECK(updraft_allocate_once(client.session, 0, &once) == UPDRAFT_ERR_INVALID);
  REQUIRE(updraft_allocate_once(client.session, 200000, &once) == UPDRAFT_OK);
  CHECK(updraft_release(client.session, once) == UPDRAFT_OK);
  REQUIRE(updraft_allocate_once(client.session, 200000, &once) == UPDRAFT_OK);
  std::memset(once, 'o', 200000);
  request = updraft_request_new(UPDRAFT_CHAT);
  updraft_request_add_message(request, "user");
  updraft_request_add_placed_text(request, once, 150000);
  CHECK(client.answer(client.submit(request)) == std::string(150000, 'o'));
  CHECK(updraft_release(client.session, once) == UPDRAFT_ERR_INVALID);  // taken, and gone
  updraft_request_free(request);
}

TEST_CASE("without shared memory whole requests cross as messages") {
  EchoDaemon daemon;
  Client client(daemon, UPDRAFT_NO_SHARED_MEMORY);
  void* piece = nullptr;
  CHECK(updraft_allocate(client.session, 100, &piece) == UPDRAFT_ERR_NO_ROOM);
  const Ask ask("echo", std::string(50000, 'm'));
  CHECK(client.answer(client.submit(ask.request)) == ask.text);
}

TEST_CASE("more requests than the daemon allows are an answer, and cancel ends one") {
  EchoDaemon daemon;
  Client client(daemon);
  const Ask ask("hold");
  std::vector<uint64_t> ids;
  for (uint32_t i = 0; i < updraft_requests_max(client.session); ++i)
    ids.push_back(client.submit(ask.request));
  uint64_t id = 0;
  CHECK(updraft_submit(client.session, ask.request, &id) == UPDRAFT_ERR_BUSY);
  REQUIRE(daemon.service.wait_submitted(static_cast<int>(ids.size())));
  CHECK(updraft_cancel(client.session, ids[1]) == UPDRAFT_OK);
  const updraft_event* event = nullptr;
  do {
    event = client.next();
  } while (event->kind == UPDRAFT_STARTED);
  CHECK(event->kind == UPDRAFT_FAILED);
  CHECK(event->request == ids[1]);
  CHECK(std::string(event->error_code) == "cancelled");
  CHECK(client.submit(ask.request) != ids[1]);
  CHECK(updraft_cancel(client.session, ids[1]) == UPDRAFT_OK);  // has ended: ignored
}

TEST_CASE("a second thread inside a session is turned away") {
  EchoDaemon daemon;
  Client client(daemon);
  std::atomic<bool> turned_away = false;
  std::thread other([&] {
    const updraft_event* event = nullptr;
    while (!turned_away) (void)updraft_next(client.session, 50, &event);
  });
  const updraft_event* event = nullptr;
  int status = UPDRAFT_OK;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (status != UPDRAFT_ERR_THREAD && std::chrono::steady_clock::now() < until) {
    status = updraft_poll(client.session, &event);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the other thread gets its turn
  }
  CHECK(status == UPDRAFT_ERR_THREAD);
  turned_away = true;
  other.join();
  const Ask ask("echo");
  CHECK(client.answer(client.submit(ask.request)) == "hello");
}

TEST_CASE("a session's descriptor tells of events, and any thread may cancel meanwhile") {
  EchoDaemon daemon;
  updraft_session* session = nullptr;
  REQUIRE(updraft_connect(daemon.socket().c_str(), nullptr, 0, 0, &session) == UPDRAFT_OK);
  const int fd = updraft_fd(session);
  REQUIRE(fd >= 0);
  pollfd entry{fd, POLLIN, 0};
  CHECK(poll(&entry, 1, 0) == 0);
  updraft_request* request = updraft_request_new(UPDRAFT_CHAT);
  updraft_request_set_text(request, "model", "hold");
  updraft_request_add_message(request, "user");
  updraft_request_add_text(request, "x", 1);
  uint64_t id = 0;
  REQUIRE(updraft_submit(session, request, &id) == UPDRAFT_OK);
  updraft_request_free(request);
  REQUIRE(poll(&entry, 1, 10000) == 1);
  const updraft_event* event = nullptr;
  REQUIRE(updraft_poll(session, &event) == 1);
  CHECK(event->kind == UPDRAFT_STARTED);
  CHECK(poll(&entry, 1, 0) == 0);
  // While this thread is inside updraft_next(), another one cancels.
  std::thread other([&] { CHECK(updraft_cancel(session, id) == UPDRAFT_OK); });
  REQUIRE(updraft_next(session, 10000, &event) == 1);
  CHECK(event->kind == UPDRAFT_FAILED);
  other.join();
  updraft_close(session);
  REQUIRE(updraft_connect(daemon.socket().c_str(), nullptr, 0, UPDRAFT_NO_SHARED_MEMORY,
                          &session) == UPDRAFT_OK);
  CHECK(updraft_fd(session) == UPDRAFT_ERR_NO_ROOM);
  updraft_close(session);
}

TEST_CASE("after fork the session is the parent's") {
  EchoDaemon daemon;
  Client client(daemon);
  const pid_t child = fork();
  if (child == 0) {
    const updraft_event* event = nullptr;
    const bool right = updraft_poll(client.session, &event) == UPDRAFT_ERR_FORKED;
    updraft_close(client.session);
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  const Ask ask("echo");
  CHECK(client.answer(client.submit(ask.request)) == "hello");
}

TEST_CASE("a daemon that goes ends every request, then the session") {
  EchoDaemon daemon;
  Client client(daemon);
  const Ask ask("hold");
  const uint64_t id = client.submit(ask.request);
  REQUIRE(daemon.service.wait_submitted(1));
  daemon.server.reset();
  const updraft_event* event = nullptr;
  int got = 0;
  bool failed = false;
  while ((got = updraft_next(client.session, 10000, &event)) == 1)
    failed = failed || (event->request == id && event->kind == UPDRAFT_FAILED);
  CHECK(failed);
  CHECK(got == UPDRAFT_ERR_LOST);
  uint64_t none = 0;
  CHECK(updraft_submit(client.session, ask.request, &none) == UPDRAFT_ERR_LOST);
}

TEST_CASE("a session that asks for it outlives a restart of the daemon") {
  EchoDaemon daemon;
  TokenChunk chunk;
  chunk.ids = {5};
  chunk.text = "so far";
  daemon.service.set_script({chunk});  // begins to answer and never ends
  updraft_session* session = nullptr;
  REQUIRE(updraft_connect_reconnecting(daemon.socket().c_str(), "abi test", 1 << 20, 0, 30000,
                                       &session) == UPDRAFT_OK);
  std::string image = testing::png_of_bytes(50000);
  for (size_t i = testing::kHeaderBytes; i < image.size(); ++i)
    image[i] = static_cast<char>('!' + i % 90);
  void* piece = nullptr;
  REQUIRE(updraft_allocate(session, image.size(), &piece) == UPDRAFT_OK);
  std::memcpy(piece, image.data(), image.size());
  const Ask held("hold"), begun("script"), later("echo");
  REQUIRE(updraft_request_add_placed_image(held.request, "image/png", piece, image.size()) ==
          UPDRAFT_OK);
  uint64_t held_id = 0, begun_id = 0, later_id = 0;
  REQUIRE(updraft_submit(session, held.request, &held_id) == UPDRAFT_OK);
  REQUIRE(updraft_submit(session, begun.request, &begun_id) == UPDRAFT_OK);
  const updraft_event* event = nullptr;
  do {
    REQUIRE(updraft_next(session, 10000, &event) == 1);
  } while (event->kind != UPDRAFT_TOKENS);
  CHECK(event->request == begun_id);

  daemon.server.reset();
  daemon.service.answer_held();
  daemon.service.forget();
  daemon.start();
  std::map<uint64_t, int> ends;
  std::string text;
  while (ends.size() < 2) {
    REQUIRE_MESSAGE(updraft_next(session, 30000, &event) == 1, updraft_error_text());
    if (event->request == held_id) text.append(event->text, event->text_bytes);
    if (event->kind == UPDRAFT_FINISHED || event->kind == UPDRAFT_FAILED) ++ends[event->request];
    if (event->kind == UPDRAFT_FAILED) {
      // None of the first one's tokens had come: the next daemon runs it, with what was placed.
      CHECK(event->request == begun_id);
      CHECK(std::string(event->error_code) == "node_lost");
    }
  }
  CHECK(ends == std::map<uint64_t, int>{{held_id, 1}, {begun_id, 1}});
  CHECK(text == "hello" + image.substr(testing::kHeaderBytes));
  CHECK(daemon.service.last().messages.at(0).parts.at(1).bytes == image);
  REQUIRE(updraft_submit(session, later.request, &later_id) == UPDRAFT_OK);
  do {
    REQUIRE_MESSAGE(updraft_next(session, 10000, &event) == 1, updraft_error_text());
    CHECK(event->request == later_id);
    CHECK(event->kind != UPDRAFT_FAILED);
  } while (event->kind != UPDRAFT_FINISHED);
  updraft_close(session);
}

TEST_CASE("when nobody comes back in time, requests end, then the session") {
  EchoDaemon daemon;
  updraft_session* session = nullptr;
  REQUIRE(updraft_connect_reconnecting(daemon.socket().c_str(), "abi test", 1 << 20, 0, 50,
                                       &session) == UPDRAFT_OK);
  const Ask ask("hold");
  uint64_t id = 0;
  REQUIRE(updraft_submit(session, ask.request, &id) == UPDRAFT_OK);
  REQUIRE(daemon.service.wait_submitted(1));
  daemon.server.reset();
  const updraft_event* event = nullptr;
  int got = 0, failed = 0;
  while ((got = updraft_next(session, 10000, &event)) == 1)
    failed += event->kind == UPDRAFT_FAILED && std::string(event->error_code) == "node_lost";
  CHECK(failed == 1);
  CHECK(got == UPDRAFT_ERR_LOST);
  updraft_close(session);
}

TEST_CASE("reconnecting is refused where it cannot be") {
  EchoDaemon daemon;
  const std::string socket = daemon.socket();
  updraft_session* session = nullptr;
  for (const int32_t ms : {-1, 60001}) {
    CHECK(updraft_connect_reconnecting(socket.c_str(), "abi test", 0, 0, ms, &session) ==
          UPDRAFT_ERR_INVALID);
    CHECK(std::string(updraft_error_text()).find(std::to_string(ms)) != std::string::npos);
  }
  CHECK(updraft_connect_reconnecting(socket.c_str(), "abi test", 0, UPDRAFT_NO_SHARED_MEMORY, 100,
                                     &session) == UPDRAFT_ERR_INVALID);
  CHECK(session == nullptr);
}

TEST_CASE("the library shows its C ABI and nothing else") {
  FILE* pipe = popen("nm -D --defined-only " UPDRAFT_BINARY_DIR "/lib/libupdraft_client.so", "r");
  REQUIRE(pipe != nullptr);
  char line[512];
  int functions = 0;
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    std::string text(line);
    text.erase(text.find_last_not_of('\n') + 1);
    const std::string name = text.substr(text.rfind(' ') + 1);
    CHECK_MESSAGE(name.rfind("updraft_", 0) == 0, name);
    ++functions;
  }
  CHECK(pclose(pipe) == 0);
  // As many as the header declares.
  std::ifstream header(testing::repo_file("edge/client/updraft_client.h"));
  int declared = 0;
  for (std::string text; std::getline(header, text);)
    declared += text.rfind("UPDRAFT_API ", 0) == 0;
  CHECK(functions == declared);
}
