// Sessions and daemons that are lost: what goes on, what runs anew, and what ends.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <filesystem>

#include "common/ipc/unix_socket.h"
#include "tests/edge/handoff_service.h"
#include "tests/support/early_child.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

// Shuts this process's connections to the daemon, as if they had been lost.
void cut_connections(const std::string& path) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::atoi(entry.path().filename().c_str());
    sockaddr_un peer{};
    socklen_t bytes = sizeof peer;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &bytes) != 0) continue;
    if (peer.sun_family == AF_UNIX && bytes > sizeof(sa_family_t) && path == peer.sun_path)
      shutdown(fd, SHUT_RDWR);
  }
}

TokenChunk chunk_at(int32_t offset) {
  TokenChunk chunk;
  chunk.offset = offset;
  chunk.ids = {offset};
  chunk.text = std::to_string(offset);
  return chunk;
}

}  // namespace

TEST_CASE("the daemon's end is an error at the client, and every request in flight ends") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  auto started = client->next(10000);
  REQUIRE(started.ok());
  daemon.server.reset();
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<RequestError>(events.back()).code == ErrorCode::kNodeLost);
  CHECK_FALSE(client->next(100).ok());
  CHECK_FALSE(client->submit(chat("y")).ok());
}

TEST_CASE(
    "after a restart of the daemon what had not begun to answer is answered by the next one") {
  Daemon daemon;
  const auto client = daemon.client(true, 10000);
  // One whose answer has begun, two that wait, one of them with its text in the payload area.
  const Result<uint32_t> begun = client->submit(chat("x", "spill-hold"));
  const Result<uint32_t> small = client->submit(chat("small", "hold"));
  const Result<uint32_t> large = client->submit(chat(std::string(100000, 'p'), "hold"));
  REQUIRE((begun.ok() && small.ok() && large.ok()));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 3; }));
  const std::string before = client->welcome().session_token;
  daemon.server.reset();
  daemon.service.answer_held();
  daemon.start({});
  std::map<uint32_t, std::vector<Event>> events;
  for (int ends = 0; ends < 3;) {
    auto next = client->next(10000);
    REQUIRE_MESSAGE(next.ok(), next.message());
    REQUIRE(next->has_value());
    ends += is_end((*next)->second) ? 1 : 0;
    events[(*next)->first].push_back(std::move((*next)->second));
  }
  CHECK(client->welcome().session_token != before);
  CHECK(std::get<RequestError>(events[*begun].back()).code == ErrorCode::kNodeLost);
  CHECK(answer(events[*small]) == "small");
  CHECK(std::holds_alternative<Finished>(events[*small].back()));
  CHECK(answer(events[*large]) == "[100000 ppp]");
  // And it goes on as before, cancels included.
  const Result<uint32_t> again = client->submit(chat("x", "spill-hold"));
  REQUIRE(again.ok());
  client->cancel(*again);
  CHECK(std::holds_alternative<RequestError>(collect(*client, *again).back()));
}

TEST_CASE("a client that lost its session goes on with the same daemon, which runs nothing twice") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  std::string text;
  int ends = 0;
  const auto read = [&](size_t until_bytes) {
    while (text.size() < until_bytes && ends == 0) {
      auto next = client->next(10000);
      REQUIRE_MESSAGE(next.ok(), next.message());
      REQUIRE(next->has_value());
      if (const auto* chunk = std::get_if<TokenChunk>(&(*next)->second)) text += chunk->text;
      REQUIRE_FALSE(std::holds_alternative<RequestError>((*next)->second));
      ends += is_end((*next)->second) ? 1 : 0;
    }
  };
  daemon.service.emit_held(chunk_at(0));
  read(1);
  for (int round = 1; round <= 3; ++round) {
    // Lost in the middle of the answer; it goes on while nobody is there.
    cut_connections(daemon.dir.file("edge.sock"));
    REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
    daemon.service.emit_held(chunk_at(2 * round - 1));
    read(static_cast<size_t>(2 * round));
    daemon.service.emit_held(chunk_at(2 * round));
    read(static_cast<size_t>(2 * round) + 1);
  }
  cut_connections(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  daemon.service.emit_held(Finished{});
  read(100);
  CHECK(text == "0123456");
  CHECK(ends == 1);
  CHECK(daemon.service.submitted() == 1);
  CHECK(daemon.service.cancelled() == 0);
  CHECK(daemon.server->stats().requests_in_flight == 0);
  // And on with the next.
  const Result<uint32_t> again = client->submit(chat("awake"));
  REQUIRE(again.ok());
  CHECK(answer(collect(*client, *again)) == "awake");
}

TEST_CASE("requests whose client does not come back in time are cancelled") {
  Daemon daemon;
  const auto client = daemon.client(true, 100);
  REQUIRE(client->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  cut_connections(daemon.dir.file("edge.sock"));
  CHECK(daemon.service.wait_cancelled(1));
}

TEST_CASE("requests whose client came back are not cancelled when its time would have been over") {
  Daemon daemon;
  const auto returns = daemon.client(true, 2000);
  const auto stays_away = daemon.client(true, 2000);
  const Result<uint32_t> kept = returns->submit(chat("x", "hold"));
  REQUIRE(kept.ok());
  REQUIRE(stays_away->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 2; }));
  cut_connections(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  while (daemon.server->stats().requests_in_flight != 1) REQUIRE(returns->next(1).ok());
  // Both were lost at once, so that the end of one says that the other's time is over, too.
  REQUIRE(daemon.service.wait_cancelled(1));
  daemon.service.emit_held(Finished{});
  CHECK(std::holds_alternative<Finished>(collect(*returns, *kept).back()));
}

TEST_CASE("a client that could come back and says that it will not is believed at once") {
  Daemon daemon;
  auto client = daemon.client(true, 60000);
  REQUIRE(client->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  client.reset();
  CHECK(daemon.service.wait_cancelled(1));  // within 10 s, not after a minute
}

TEST_CASE("a killed client that could have come back is reclaimed within a second") {
  testing::EarlyChild child([](const std::string& path) {
    LocalClientOptions options;
    options.socket_path = path;
    options.reconnect_ms = 60000;
    auto client = LocalClient::connect(options);
    if (!client || !(*client)->submit(chat("x", "hold"))) return 2;
    pause();
    return 0;
  });
  Daemon daemon;
  child.begin(daemon.dir.file("edge.sock"));
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  const int64_t killed_ns = monotonic_ns();
  child.end_at_once();
  REQUIRE(daemon.service.wait_cancelled(1));
  CHECK(monotonic_ns() - killed_ns < kNsPerSecond);
}

TEST_CASE("the same request handed over by two sessions runs once, and is answered to the second") {
  Daemon daemon;
  const auto first = daemon.client(true, 30000);
  const auto second = daemon.client(true, 30000);
  Request request = chat("x", "hold");
  request.id = "one-and-the-same";
  const Result<uint32_t> before = first->submit(request);
  REQUIRE(before.ok());
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  daemon.service.emit_held(chunk_at(0));
  const Result<uint32_t> after = second->submit(request);
  REQUIRE(after.ok());
  CHECK(std::get<RequestError>(collect(*first, *before).back()).code == ErrorCode::kCancelled);
  daemon.service.emit_held(chunk_at(1));
  daemon.service.emit_held(Finished{});
  const std::vector<Event> events = collect(*second, *after);
  CHECK(std::holds_alternative<Started>(events.front()));
  CHECK(answer(events) == "01");
  CHECK(std::holds_alternative<Finished>(events.back()));
  CHECK(daemon.service.submitted() == 1);
  CHECK(daemon.service.cancelled() == 0);
  // Once more after its end: from what is known.
  const Result<uint32_t> late = first->submit(request);
  REQUIRE(late.ok());
  CHECK(answer(collect(*first, *late)) == "01");
  CHECK(daemon.service.submitted() == 1);
}

TEST_CASE("another request under an id that is still known is refused, not answered") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const auto ask = [&](Request request) {
    request.id = "mine";
    const Result<uint32_t> handle = client->submit(std::move(request));
    REQUIRE_MESSAGE(handle.ok(), handle.message());
    return collect(*client, *handle);
  };
  CHECK(answer(ask(chat("one"))) == "one");
  const std::vector<Event> other = ask(chat("two"));
  REQUIRE(std::holds_alternative<RequestError>(other.back()));
  CHECK(std::get<RequestError>(other.back()).message.find("stands for another request") !=
        std::string::npos);
  Request warmer = chat("one");
  warmer.sampling.temperature = 0.5F;
  CHECK(std::holds_alternative<RequestError>(ask(warmer).back()));
  CHECK(answer(ask(chat("one"))) == "one");  // the first one's answer is still known
  CHECK(daemon.service.submitted() == 1);
}

TEST_CASE("a look at a lost session waits for nobody, and says busy until it is back") {
  Daemon daemon;
  const std::string path = daemon.dir.file("edge.sock");
  const auto client = daemon.client(true, 30000);
  daemon.server.reset();
  // Somebody listens there, and never answers.
  std::optional<ipc::UniqueFd> mute = std::move(ipc::listen_unix(path)).value();
  const int64_t begin_ns = monotonic_ns();
  CHECK(daemon.eventually([&] {
    const auto nothing = client->next(0);
    REQUIRE_MESSAGE(nothing.ok(), nothing.message());
    CHECK_FALSE(nothing->has_value());
    const Result<uint32_t> refused = client->submit(chat("x"));
    return !refused && refused.kind() == static_cast<int>(LocalFailure::kBusy);
  }));
  for (int i = 0; i < 20; ++i) CHECK_FALSE(std::move(client->next(0)).value().has_value());
  // Less than any of them would have waited for a handshake.
  CHECK(monotonic_ns() - begin_ns < 4 * kNsPerSecond);
  mute.reset();
  std::filesystem::remove(path);
  daemon.start({});
  std::optional<uint32_t> handle;
  CHECK(daemon.eventually([&] {
    CHECK(client->next(0).ok());
    const Result<uint32_t> again = client->submit(chat("again"));
    if (again) handle = *again;
    return again.ok();
  }));
  REQUIRE(handle.has_value());
  CHECK(answer(collect(*client, *handle)) == "again");
}

TEST_CASE("a daemon that does not come back is an error after the time to wait for it") {
  Daemon daemon;
  const auto client = daemon.client(true, 50);
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  daemon.server.reset();
  CHECK(std::get<RequestError>(collect(*client, *handle).back()).code == ErrorCode::kNodeLost);
  CHECK_FALSE(client->next(0).ok());
}

TEST_CASE("the event descriptor survives a lost session") {
  Daemon daemon;
  const auto client = daemon.client(true, 30000);
  const int fd = client->event_fd().value();
  const auto readable = [&](int timeout_ms) {
    pollfd entry{fd, POLLIN, 0};
    return ::poll(&entry, 1, timeout_ms) == 1;
  };
  cut_connections(daemon.dir.file("edge.sock"));
  // It tells of the loss, and then whenever it is time for the next step back.
  std::optional<uint32_t> again;
  REQUIRE(daemon.eventually([&] {
    REQUIRE(readable(10000));
    const auto nothing = client->next(0);
    REQUIRE_MESSAGE(nothing.ok(), nothing.message());
    CHECK_FALSE(nothing->has_value());
    const Result<uint32_t> submitted = client->submit(chat("again"));
    if (submitted) again = *submitted;
    return submitted.ok();
  }));
  CHECK(readable(10000));
  CHECK(answer(collect(*client, *again)) == "again");
  CHECK_FALSE(client->next(0)->has_value());
  CHECK_FALSE(readable(0));
  // And of the new session's end it tells, too.
  daemon.server.reset();
  CHECK(readable(10000));
}

TEST_CASE("who only ever looks learns of the daemon's end") {
  Daemon daemon;
  const auto client = daemon.client();
  daemon.server.reset();
  CHECK(daemon.eventually([&] { return !client->next(0).ok(); }));
}
