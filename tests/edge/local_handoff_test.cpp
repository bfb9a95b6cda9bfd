// The local handoff through real sockets and segments, with a service that echoes: what goes in
// comes out, and a client that dies, lies or sleeps hurts only itself.
#include <doctest/doctest.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <thread>

#include "common/base/clock.h"
#include "tests/edge/handoff_service.h"
#include "tests/support/early_child.h"
#include "tests/support/images.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("a request crosses shared memory and its answer comes back") {
  Daemon daemon;
  const auto client = daemon.client();
  CHECK(client->welcome().models.at(0).id == "echo");
  const Result<uint32_t> handle = client->submit(chat("hello"));
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<Started>(events.front()).node_id == "echo");
  CHECK(answer(events) == "hello");
  CHECK(std::holds_alternative<Finished>(events.back()));
  CHECK(daemon.service.expected() == 1);  // it could wake up while the request was read
}

TEST_CASE("a client without shared memory sends whole requests over the control channel") {
  Daemon daemon;
  const auto client = daemon.client(false);
  const Result<uint32_t> handle = client->submit(chat(std::string(100000, 'y')));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*client, *handle)) == "[100000 yyy]");
}

TEST_CASE("large texts and images lie in the payload area and arrive whole") {
  Daemon daemon;
  const auto client = daemon.client();
  const std::string text(100000, 'p');
  Request request = chat(text);
  ContentPart image;
  image.kind = ContentPart::Kind::kImage;
  image.mime = "image/png";
  request.messages[0].parts.push_back(image);
  Result<LocalClient::Buffer> buffer = client->allocate(913728);
  REQUIRE(buffer.ok());
  const std::string png = testing::png_of_bytes(buffer->bytes.size());
  std::memcpy(buffer->bytes.data(), png.data(), png.size());
  const Result<uint32_t> handle = client->submit(std::move(request), {{0, 1, *buffer}});
  REQUIRE_MESSAGE(handle.ok(), handle.message());
  CHECK(answer(collect(*client, *handle)) == "[100000 ppp][913728 PNG]");
  // Everything was freed with the end: the same again many times fits the same area.
  for (int i = 0; i < 20; ++i) {
    const Result<uint32_t> again = client->submit(chat(std::string(900000, 'q')));
    REQUIRE_MESSAGE(again.ok(), again.message());
    CHECK(answer(collect(*client, *again)) == "[900000 qqq]");
  }
}

TEST_CASE("a cancelled request ends with one last event") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  auto started = client->next(10000);
  REQUIRE(started.ok());
  client->cancel(*handle);
  const std::vector<Event> events = collect(*client, *handle);
  CHECK(std::get<RequestError>(events.back()).code == ErrorCode::kCancelled);
}

TEST_CASE("many requests in flight keep their answers apart, and one too many is refused") {
  Daemon daemon;
  const auto client = daemon.client();
  std::map<uint32_t, std::string> expected;
  for (int i = 0; i < 64; ++i) {
    const Result<uint32_t> handle = client->submit(chat("request " + std::to_string(i)));
    REQUIRE(handle.ok());
    expected[*handle] = "request " + std::to_string(i);
  }
  CHECK(client->submit(chat("one more")).message().find("too many requests in flight") !=
        std::string::npos);
  std::map<uint32_t, std::string> got;
  for (size_t ended = 0; ended < 64;) {
    auto next = client->next(10000);
    REQUIRE(next.ok());
    REQUIRE(next->has_value());
    if (const auto* chunk = std::get_if<TokenChunk>(&(*next)->second))
      got[(*next)->first] += chunk->text;
    ended += is_end((*next)->second) ? 1 : 0;
  }
  CHECK(got == expected);
}

TEST_CASE("a client killed with requests in flight is reclaimed within a second") {
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  testing::EarlyChild child([&](const std::string& path) {
    LocalClientOptions options;
    options.socket_path = path;
    Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(options);
    if (!client) return 1;
    // The payload is large, so that the daemon may well be reading it at the moment of the kill.
    for (int i = 0; i < 8; ++i) {
      if (!(*client)->submit(chat(std::string(500000, 'k'), "hold"))) return 2;
    }
    if (write(ready[1], "x", 1) != 1) return 3;
    pause();
    return 0;
  });
  Daemon daemon;
  child.begin(daemon.dir.file("edge.sock"));
  char byte = 0;
  REQUIRE(read(ready[0], &byte, 1) == 1);
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 8; }));
  CHECK(daemon.server->stats().mapped_bytes > 0);
  const int64_t killed_ns = monotonic_ns();
  child.end_at_once();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 0; }));
  CHECK(monotonic_ns() - killed_ns < kNsPerSecond);
  CHECK(daemon.server->stats().mapped_bytes == 0);
  CHECK(daemon.server->stats().requests_in_flight == 0);
  CHECK(daemon.service.wait_cancelled(8));
  close(ready[0]);
  close(ready[1]);
  // The daemon serves the next client.
  const auto client = daemon.client();
  const Result<uint32_t> handle = client->submit(chat("still here"));
  REQUIRE(handle.ok());
  CHECK(answer(collect(*client, *handle)) == "still here");
}

TEST_CASE("a user's requests in flight are limited over all its sessions") {
  LocalServerConfig config;
  config.requests_per_uid_max = 3;
  Daemon daemon(config);
  const auto first = daemon.client();
  const auto second = daemon.client();
  for (int i = 0; i < 3; ++i) REQUIRE(first->submit(chat("x", "hold")).ok());
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().requests_in_flight == 3; }));
  const Result<uint32_t> handle = second->submit(chat("one more"));
  REQUIRE(handle.ok());
  const std::vector<Event> events = collect(*second, *handle);
  const auto* error = std::get_if<RequestError>(&events.back());
  REQUIRE(error != nullptr);
  CHECK(error->code == ErrorCode::kRateLimited);
  CHECK(error->message.find("has 3 requests in flight") != std::string::npos);
}

TEST_CASE("after a fork the session stays the parent's, and the child is told so") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<uint32_t> held = client->submit(chat("x", "hold"));
  REQUIRE(held.ok());
  // Then the daemon's threads sleep, and hold no lock of the allocator that the child would miss.
  REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 1; }));
  const pid_t child = fork();
  if (child == 0) {
    const auto refused = client->submit(chat("from the child"));
    const bool told = refused.message().find("belongs to the parent process") != std::string::npos;
    _exit(told && !client->next(0).ok() && !client->allocate(64).ok() && !client->event_fd().ok()
              ? 0
              : 1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  client->cancel(*held);
  CHECK(std::get<RequestError>(collect(*client, *held).back()).code == ErrorCode::kCancelled);
}

TEST_CASE("the event descriptor is readable exactly while there is something to take") {
  Daemon daemon;
  const auto client = daemon.client();
  const Result<int> fd = client->event_fd();
  REQUIRE_MESSAGE(fd.ok(), fd.message());
  CHECK(*client->event_fd() == *fd);
  const auto readable = [&](int timeout_ms) {
    pollfd entry{*fd, POLLIN, 0};
    return ::poll(&entry, 1, timeout_ms) == 1;
  };
  const auto take = [&] {
    auto next = client->next(0);
    REQUIRE_MESSAGE(next.ok(), next.message());
    return std::move(*next);
  };
  CHECK_FALSE(readable(0));
  for (int round = 0; round < 50; ++round) {
    REQUIRE(client->submit(chat("hello")).ok());
    // Waits with the descriptor alone; each time it is readable there is an event, and not before.
    for (bool ended = false; !ended;) {
      REQUIRE(readable(10000));
      const auto event = take();
      REQUIRE(event.has_value());
      ended = is_end(event->second);
    }
    CHECK_FALSE(readable(0));
    CHECK_FALSE(take().has_value());
    CHECK_FALSE(readable(0));
  }
  // An end that nobody waits for in next() is told as well, and stays.
  daemon.server.reset();
  REQUIRE(readable(10000));
  CHECK(client->next(0).kind() == static_cast<int>(LocalFailure::kGone));
  CHECK(readable(0));
}

TEST_CASE("cancel comes from any thread, while the session's own waits") {
  for (const bool mapped : {true, false}) {
    CAPTURE(mapped);
    Daemon daemon;
    const auto client = daemon.client(mapped);
    std::vector<uint32_t> handles;
    for (int i = 0; i < 40; ++i)
      handles.push_back(std::move(client->submit(chat("x", "hold"))).value());
    REQUIRE(daemon.eventually([&] { return daemon.service.submitted() == 40; }));
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = t; i < handles.size(); i += 4) {
          client->cancel(handles[i]);
          client->cancel(handles[i] + 1);  // no such request
        }
      });
    }
    for (int ends = 0; ends < 40;) {
      auto next = client->next(10000);
      REQUIRE(next.ok());
      REQUIRE(next->has_value());
      if (!is_end((*next)->second)) continue;
      CHECK(std::get<RequestError>((*next)->second).code == ErrorCode::kCancelled);
      ++ends;
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_CASE("failures tell their kind") {
  const auto kind = [](LocalFailure failure) { return static_cast<int>(failure); };
  LocalServerConfig config;
  config.sessions_max = 1;
  config.segment_bytes_max = 4 << 20;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = "/tmp/updraft-no-such-daemon.sock";
  CHECK(LocalClient::connect(options).kind() == kind(LocalFailure::kNoDaemon));
  const auto client = daemon.client();
  options.socket_path = daemon.dir.file("edge.sock");
  CHECK(LocalClient::connect(options).kind() == kind(LocalFailure::kRefused));
  CHECK(client->allocate(0).kind() == kind(LocalFailure::kBadArgument));
  CHECK(client->allocate(4 << 20).kind() == kind(LocalFailure::kNoRoom));
  CHECK(client->submit(chat(std::string(4 << 20, 'x'))).kind() == kind(LocalFailure::kNoRoom));
  Request many = chat("x");
  many.messages[0].parts.resize(300'000);
  CHECK(client->submit(many).kind() == kind(LocalFailure::kTooLarge));
  const Result<LocalClient::Buffer> buffer = client->allocate(64);
  CHECK(client->submit(chat("x"), {{7, 0, *buffer}}).kind() == kind(LocalFailure::kBadArgument));
  for (int i = 0; i < 64; ++i) REQUIRE(client->submit(chat("x", "hold")).ok());
  CHECK(client->submit(chat("x")).kind() == kind(LocalFailure::kBusy));
  daemon.server.reset();
  while (client->next(10000).ok()) {
  }
  CHECK(client->next(0).kind() == kind(LocalFailure::kGone));
  CHECK(client->submit(chat("x")).kind() == kind(LocalFailure::kGone));
}

TEST_CASE("nothing of a session survives an exec") {
  Daemon daemon;
  const auto client = daemon.client();
  REQUIRE(client->event_fd().ok());
  const Result<uint32_t> handle = client->submit(chat("x", "hold"));
  REQUIRE(handle.ok());
  client->cancel(*handle);  // and the control channel's
  (void)collect(*client, *handle);
  int out[2];
  REQUIRE(pipe(out) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(out[1], STDOUT_FILENO);
    close(out[0]);
    execl("/bin/sh", "sh", "-c",
          "for f in /proc/self/fd/*; do readlink $f; done; cat /proc/self/maps",
          static_cast<char*>(nullptr));
    _exit(127);
  }
  close(out[1]);
  std::string seen;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(out[0], buffer, sizeof buffer)) > 0;)
    seen.append(buffer, static_cast<size_t>(got));
  close(out[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(seen.find("[stack]") != std::string::npos);  // it looked
  for (const char* what : {"updraft-session", "eventfd", "eventpoll", "socket:", "pidfd"}) {
    CAPTURE(what);
    CHECK(seen.find(what) == std::string::npos);
  }
}

TEST_CASE("sessions and memory are limited, and the refusal says so") {
  LocalServerConfig config;
  config.sessions_max = 2;
  config.segment_bytes_max = 4 << 20;
  config.segment_bytes_per_uid_max = 5 << 20;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = daemon.dir.file("edge.sock");
  options.payload_bytes = 16 << 20;
  CHECK(LocalClient::connect(options).message().find("allowed are") != std::string::npos);
  const auto first = daemon.client();
  options.payload_bytes = 2 << 20;
  CHECK(LocalClient::connect(options).message().find("allowed are") !=
        std::string::npos);  // the user's share is used up
  const auto second = daemon.client(false);
  CHECK(LocalClient::connect(options).message().find("all 2 sessions are taken") !=
        std::string::npos);
}

TEST_CASE("a user's sessions are limited, and one that ends makes room") {
  LocalServerConfig config;
  config.sessions_per_uid_max = 2;
  Daemon daemon(config);
  LocalClientOptions options;
  options.socket_path = daemon.dir.file("edge.sock");
  auto first = daemon.client();
  const auto second = daemon.client(false);
  CHECK(LocalClient::connect(options).message().find(
            "user " + std::to_string(getuid()) + " has 2 sessions already") != std::string::npos);
  CHECK(daemon.server->stats().sessions_refused == 1);
  first.reset();
  REQUIRE(daemon.eventually([&] { return daemon.server->stats().sessions == 1; }));
  CHECK(LocalClient::connect(options).ok());
}

TEST_CASE("no daemon at the path is one clear line") {
  LocalClientOptions options;
  options.socket_path = "/tmp/updraft-no-such-daemon.sock";
  CHECK(LocalClient::connect(options).message().find(
            "is `updraft edge` or `updraft up` running?") != std::string::npos);
}
