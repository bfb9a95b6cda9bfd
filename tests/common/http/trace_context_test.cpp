// W3C Trace Context: cases after the standard's own (section 3.2 and its test suite's names).
#include "common/http/trace_context.h"

#include <doctest/doctest.h>

#include <string>

#include "tests/common/http/http_fixture.h"

using namespace updraft;
using namespace updraft::testing;

namespace {
const std::string kTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
}

TEST_CASE("a traceparent is taken as the standard has it, or ignored") {
  CHECK(read_traceparent(kTrace) == kTrace);
  const std::string rest = kTrace.substr(2);
  CHECK(read_traceparent("cc" + rest) == kTrace);
  CHECK(read_traceparent("cc" + rest + "-what-the-future-will-be-like") == kTrace);
  for (const std::string& bad : std::initializer_list<std::string>{
           std::string(), kTrace.substr(1), kTrace + "0", kTrace + "-0", "ff" + rest, "0x" + rest,
           "cc" + rest + ".what", kTrace.substr(0, 54), "00_" + kTrace.substr(3),
           "00-4BF92F3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
           "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
           "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
           "00-4bf92f3577b34da6a3ce929d0e0e473.-00f067aa0ba902b7-01"})
    CHECK_MESSAGE(!read_traceparent(bad), bad);
}

TEST_CASE("a tracestate is taken as the standard has it, or ignored") {
  for (const std::string good : {"foo=1", "foo=1,bar=2", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
                                 "a-*/_1=x", "0tenant@vendor=v", "k= !\"~", "foo=a:b;c/d"})
    CHECK_MESSAGE(read_tracestate(good) == good, good);
  CHECK(read_tracestate(" foo=1 \t, ,bar=2,, ") == "foo=1,bar=2");
  for (const std::string bad :
       {"foo", "foo=", "=1", "Foo=1", "foo=1=2", "foo=1,bar", "foo =1", "foo@=1", "@foo=1",
        "foo@1bar=1", "1foo=1", "foo@bar@baz=1", "foo=1,foo=2", "foo=\x7f"})
    CHECK_MESSAGE(read_tracestate(bad).empty(), bad);
  CHECK(read_tracestate("foo=" + std::string(256, 'v')) == "foo=" + std::string(256, 'v'));
  CHECK(read_tracestate("foo=" + std::string(257, 'v')).empty());
  CHECK(read_tracestate(std::string(257, 'k') + "=1").empty());
  CHECK(read_tracestate(std::string(242, 't') + "@v=1").empty());
  CHECK(read_tracestate("t@" + std::string(15, 'v') + "=1").empty());
  std::string members;
  for (int i = 0; i < 32; ++i) members += "k" + std::to_string(i) + "=1,";
  CHECK(!read_tracestate(members).empty());
  CHECK(read_tracestate(members + "k32=1").empty());
  // Too long: members of more than 128 bytes go first, then the last ones.
  const std::string large = "large=" + std::string(150, 'v');
  std::string small;
  for (int i = 0; i < 9; ++i) small += ",s" + std::to_string(i) + "=" + std::string(50, 'v');
  CHECK(read_tracestate("a=1," + large + small) == "a=1" + small);
  for (int i = 0; i < 9; ++i) small += ",t" + std::to_string(i) + "=" + std::string(50, 'v');
  CHECK(read_tracestate(large + small) == small.substr(1, 9 * 54 - 1));
}

TEST_CASE("a trace goes through to the service, the answer and the access log") {
  HttpFixture f;
  f.start();
  const HttpResponse with = f.post(kChatPath, kChatBody, {{"traceparent", kTrace}});
  CHECK(with.field("traceparent") == kTrace);
  CHECK(f.service.wait_request(0)->trace == kTrace);
  CHECK(f.record(0).trace == kTrace);
  CHECK(with.field("tracestate").empty());
  // Two fields are one list; without a trace there is no state of it.
  const HttpResponse state =
      f.post(kChatPath, kChatBody,
             {{"traceparent", kTrace}, {"tracestate", "rojo=1"}, {"tracestate", "congo=2"}});
  CHECK(state.field("tracestate") == "rojo=1,congo=2");
  CHECK(f.service.wait_request(1)->trace_state == "rojo=1,congo=2");
  CHECK(f.post(kChatPath, kChatBody, {{"tracestate", "rojo=1"}}).field("tracestate").empty());
  CHECK(f.service.wait_request(2)->trace_state.empty());
  const HttpResponse without = f.post(kChatPath, kChatBody, {{"traceparent", "00-xyz"}});
  CHECK(without.status == 200);
  CHECK(without.field("traceparent").empty());
  CHECK(f.record(3).trace.empty());
}
