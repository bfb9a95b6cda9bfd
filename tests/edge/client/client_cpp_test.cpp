// The header-only C++ wrapper over the client library.
#include <cstring>

#include "edge/client/updraft_client.hpp"
#include "tests/edge/client/echo_daemon.h"
#include "tests/support/images.h"

using namespace updraft::client;
using updraft::testing::EchoDaemon;

namespace {

Session open(const EchoDaemon& daemon) {
  Options options;
  options.socket_path = daemon.socket();
  options.payload_bytes = 1 << 20;
  Result<Session> session = Session::connect(options);
  REQUIRE_MESSAGE(session.has_value(), session.error().text);
  return std::move(*session);
}

Stream send(Session& session, const Chat& chat) {
  Result<Stream> stream = session.submit(chat);
  REQUIRE_MESSAGE(stream.has_value(), stream.error().text);
  return std::move(*stream);
}

}  // namespace

TEST_CASE("two streams of one session keep their pieces apart") {
  EchoDaemon daemon;
  Session session = open(daemon);
  CHECK(session.models() == std::vector<std::string>{"echo"});
  Chat one, two;
  const std::string long_one(2500, '1');
  one.system("s").user(long_one);
  two.user("two");
  Stream first = send(session, one);
  Stream second = send(session, two);
  CHECK(*second.text() == "two");
  std::string text;
  int pieces = 0;
  while (auto piece = first.next()) {
    text += piece->text;
    ++pieces;
  }
  CHECK(text == "s" + long_one);
  CHECK(pieces == 3);
  CHECK(first.ended());
  CHECK(first.end().has_value());
  CHECK(first.place().node == "echo");
}

TEST_CASE("a callback that says no cancels, and a dropped stream does") {
  EchoDaemon daemon;
  Session session = open(daemon);
  updraft::TokenChunk chunk;
  chunk.ids = {1};
  chunk.text = "x";
  daemon.service.set_script({chunk, chunk, updraft::Finished{}});
  Chat chat;
  chat.user("hi").model("script");
  int calls = 0;
  Stream scripted = send(session, chat);
  const Result<Finish> end = scripted.each([&](const Piece&) {
    ++calls;
    return true;
  });
  CHECK(end.has_value());
  CHECK(calls == 2);
  Chat held;
  held.user("hi").model("hold");
  {
    Stream dropped = send(session, held);
    REQUIRE(daemon.service.wait_submitted(2));
  }
  CHECK(daemon.service.wait_cancelled(1));
  Stream cancelled = send(session, held);
  REQUIRE(daemon.service.wait_submitted(3));
  CHECK_FALSE(cancelled.next(0).has_value());
  CHECK_FALSE(cancelled.ended());
  cancelled.cancel();
  Result<Finish> failed = cancelled.end();
  REQUIRE_FALSE(failed.has_value());
  CHECK(failed.error().code == "cancelled");
  CHECK(failed.error().http_status == 499);
  CHECK_THROWS_AS(failed.value(), Failure);
}

TEST_CASE("buffers are written in place, freed when dropped and taken by a submit") {
  EchoDaemon daemon(updraft::testing::without_growth());
  Session session = open(daemon);
  for (int round = 0; round < 4; ++round) {
    Result<Buffer> dropped = session.allocate(900000);  // fits once only
    REQUIRE_MESSAGE(dropped.has_value(), dropped.error().text);
  }
  Result<Buffer> buffer = session.allocate(900000);
  REQUIRE(buffer.has_value());
  const std::string png = updraft::testing::png_of_bytes(5000);
  std::memcpy(buffer->bytes().data(), png.data(), 5000);
  Chat chat;
  chat.message("user").image("image/png", *buffer, 5000);
  Stream stream = send(session, chat);
  CHECK(buffer->bytes().empty());
  CHECK(*stream.text() == png.substr(33));
  // The piece is free again; the old object must not free it a second time under its new owner.
  Result<Buffer> next = session.allocate(900000);
  REQUIRE(next.has_value());
  { const Buffer gone = std::move(*buffer); }
  CHECK_FALSE(session.allocate(900000).has_value());
}

TEST_CASE("a one-off buffer is handed over like any other") {
  EchoDaemon daemon;
  Session session = open(daemon);
  Result<Buffer> once = session.allocate_once(3 << 20);
  REQUIRE_MESSAGE(once.has_value(), once.error().text);
  std::memset(once->bytes().data(), 'o', 5000);
  Chat chat;
  chat.message("user").text(*once, 5000);
  Stream stream = send(session, chat);
  CHECK(once->bytes().empty());
  CHECK(*stream.text() == std::string(5000, 'o'));
  REQUIRE(session.allocate_once(100).has_value());  // dropped: given back
  Result<Buffer> ids = session.allocate(8);
  REQUIRE(ids.has_value());
  const int32_t values[] = {3, 4};
  std::memcpy(ids->bytes().data(), values, sizeof values);
  Result<Stream> completion = session.submit(Completion::of_ids(*ids, 2));
  REQUIRE_MESSAGE(completion.has_value(), completion.error().text);
  CHECK(completion->end().has_value());
  CHECK(daemon.service.last().prompt_ids.at(0) == std::vector<int32_t>{3, 4});
}

TEST_CASE("a stream of a session that reconnects is answered by the next daemon") {
  EchoDaemon daemon;
  Options options;
  options.socket_path = daemon.socket();
  options.reconnect_ms = 30000;
  Result<Session> session = Session::connect(options);
  REQUIRE_MESSAGE(session.has_value(), session.error().text);
  Chat chat;
  chat.user("hi").model("hold");
  Stream stream = send(*session, chat);
  REQUIRE(daemon.service.wait_submitted(1));
  daemon.server.reset();
  daemon.service.answer_held();
  daemon.start();
  std::string text;
  while (auto piece = stream.next()) text += piece->text;
  REQUIRE_MESSAGE(stream.end().has_value(), stream.end().error().text);
  CHECK(text == "hi");
}

TEST_CASE("refused settings, absent daemons and closed sessions are values") {
  Options nowhere;
  nowhere.socket_path = "/nowhere/edge.sock";
  Result<Session> none = Session::connect(nowhere);
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().status == UPDRAFT_ERR_NO_DAEMON);
  EchoDaemon daemon;
  Session session = open(daemon);
  Chat wrong;
  wrong.user("x").number("heat", 1);
  Result<Stream> refused = session.submit(wrong);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().status == UPDRAFT_ERR_INVALID);
  CHECK(refused.error().text.find("heat") != std::string::npos);
  const int32_t ids[] = {1, 2};
  Completion completion{std::span<const int32_t>(ids)};
  Result<Stream> stream = session.submit(completion);
  REQUIRE(stream.has_value());
  CHECK(stream->end().has_value());
  CHECK(daemon.service.last().prompt_ids.at(0) == std::vector<int32_t>{1, 2});
  Chat held;
  held.user("hi").model("hold");
  Stream open_stream = send(session, held);
  session.close();
  REQUIRE_FALSE(open_stream.end().has_value());
  CHECK(open_stream.end().error().status == UPDRAFT_ERR_LOST);
  CHECK_FALSE(session.submit(held).has_value());
}
