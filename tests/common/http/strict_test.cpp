// The strictness layer and keys. SHA-256 vectors: FIPS 180-2 appendix B.1 and the empty message.
#include "common/http/strict.h"

#include <doctest/doctest.h>

using namespace updraft;

namespace {

int status(const std::optional<HttpFault>& fault) { return fault ? fault->status : 0; }
int head_status(const std::string& head) { return status(check_head(head, 8192, 64)); }

}  // namespace

TEST_CASE("a plain request head passes") {
  CHECK(head_status("GET / HTTP/1.1\r\nHost: a\r\n\r\n") == 0);
  CHECK(head_status("POST /v1/x?y=%20 HTTP/1.0\r\nhOsT:a:80\r\nX-Empty:\r\nX-Tab:\ta b \r\n\r\n") ==
        0);
  CHECK(head_status("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n") == 0);
}

TEST_CASE("a malformed request line is refused") {
  CHECK(head_status("GET  / HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("GET /\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("GET / HTTP/1.1 \r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("G@T / HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status(" GET / HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("GET / http/1.1\r\nHost: a\r\n\r\n") == 400);
  CHECK(head_status("GET / HTTP/1.2\r\nHost: a\r\n\r\n") == 505);
  CHECK(head_status("PRI * HTTP/2.0\r\n\r\n") == 505);
  CHECK(head_status("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n") == 400);
}

TEST_CASE("faults name the header at fault") {
  const auto twice = check_head(
      "GET / HTTP/1.1\r\nHost: a\r\nauthorization: x\r\nAuthorization: y\r\n\r\n", 8192, 64);
  REQUIRE(twice);
  CHECK(twice->message.find("authorization") != std::string::npos);
  const auto blank = check_head("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 8192, 64);
  REQUIRE(blank);
  CHECK(blank->message.find("'Host '") != std::string::npos);
}

TEST_CASE("Transfer-Encoding is refused in HTTP/1.0") {
  CHECK(head_status("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n") == 400);
}

TEST_CASE("targets: plain paths pass, tricks do not") {
  for (const char* good : {"/", "/v1/models", "/v1/models/a.b-c_d~e", "/a?b=../c", "/a%20b", "/...",
                           "/.well-known", "//a", "/v1/models/org%2Fname", "/a?%2e%2f"}) {
    CHECK_MESSAGE(status(check_target(good)) == 0, good);
  }
  for (const char* bad : {"",
                          "a",
                          "*",
                          "http://a/",
                          "/.",
                          "/..",
                          "/a/./b",
                          "/a/..",
                          "/a/../b",
                          "/a\\b",
                          "/a#b",
                          "/a b",
                          "/a\x7f",
                          "/a\x80",
                          "/%",
                          "/%2",
                          "/%zz",
                          "/a?%g0",
                          "/%2e",
                          "/%2E%2e/",
                          "/a%2fb",
                          "/a%5cb",
                          "/%00",
                          "/%0a",
                          "/%252e",
                          "/v1%2fmodels",
                          "/v1/models/..%2fmetrics",
                          "/v1/models/a%2F..",
                          "/v1/models/%2e%2e%2fa",
                          "/v1/models%2fa",
                          "/\"",
                          "/<"}) {
    CHECK_MESSAGE(status(check_target(bad)) == 400, bad);
  }
}

TEST_CASE("host names lose their port and case; malformed ones are nothing") {
  CHECK(host_name("LocalHost") == "localhost");
  CHECK(host_name("localhost:8080") == "localhost");
  CHECK(host_name(" 127.0.0.1:1 ") == "127.0.0.1");
  CHECK(host_name("[::1]:80") == "[::1]");
  CHECK(host_name("[::1]") == "[::1]");
  for (const char* bad : {"", ":80", "a b", "a:", "a:x", "a:65536", "a:1:2", "[::1", "[]", "[zz]",
                          "[::1]x", "a/b", "user@a", "a,b"}) {
    CHECK_MESSAGE(!host_name(bad).has_value(), bad);
  }
  CHECK(status(check_host("evil", {"localhost"})) == 403);
  CHECK(status(check_host("LOCALHOST:1", {"localhost"})) == 0);
  CHECK(status(check_host("a b", {"localhost"})) == 400);
}

TEST_CASE("only JSON is JSON") {
  for (const char* good : {"application/json", "Application/JSON",
                           "application/json; charset=utf-8", "application/json;charset=UTF-8"}) {
    CHECK_MESSAGE(is_json_content_type(good), good);
  }
  for (const char* bad : {"", "text/plain", "application/jsonp", "application/json; charset=latin1",
                          "text/json", "multipart/form-data; x=application/json"}) {
    CHECK_MESSAGE(!is_json_content_type(bad), bad);
  }
}
