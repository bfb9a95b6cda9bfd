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

TEST_CASE("a trace goes through to the service, the answer and the access log") {
  HttpFixture f;
  f.start();
  const HttpResponse with = f.post(kChatPath, kChatBody, {{"traceparent", kTrace}});
  CHECK(with.field("traceparent") == kTrace);
  CHECK(f.service.wait_request(0)->trace == kTrace);
  CHECK(f.record(0).trace == kTrace);
  const HttpResponse without = f.post(kChatPath, kChatBody, {{"traceparent", "00-xyz"}});
  CHECK(without.status == 200);
  CHECK(without.field("traceparent").empty());
  CHECK(f.record(1).trace.empty());
}
