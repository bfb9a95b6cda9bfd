// The file of client keys: digests come out, anything else is refused with its line.
#include "common/config/api_keys.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

#include "tests/support/shared_data.h"

using namespace updraft;

TEST_CASE("digests are read, comments skipped, and a damaged line is named") {
  const updraft::testing::TempDir dir;
  const std::string path = dir.file("keys");
  const std::string a(64, 'a');
  const std::string b(64, '0');
  const auto write = [&](const std::string& text) {
    std::ofstream(path) << text;
    REQUIRE(chmod(path.c_str(), 0600) == 0);
  };
  write("# clients\nsha256:" + a + " alice\n\nsha256:" + b + "\r\n");
  const auto digests = load_api_key_digests(path);
  REQUIRE_MESSAGE(digests.ok(), digests.message());
  CHECK(*digests == std::vector<std::string>{a, b});

  for (const std::string& bad : {std::string("updraft-secret"), "sha256:" + a.substr(1) + " x",
                                 "sha256:" + a + "a", "sha256:" + std::string(64, 'A')}) {
    write("sha256:" + a + " alice\n" + bad + "\n");
    CAPTURE(bad);
    CHECK(load_api_key_digests(path).message().find(path + ":2: ") != std::string::npos);
  }
  write("");
  CHECK(load_api_key_digests(path)->empty());
  REQUIRE(chmod(path.c_str(), 0666) == 0);
  CHECK(load_api_key_digests(path).message().find("chmod") != std::string::npos);
  CHECK_FALSE(load_api_key_digests(dir.file("absent")).ok());
}
