// The file of client keys, and who is recognised by it.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>
#include <variant>

#include "common/auth/authenticator.h"
#include "tests/common/auth/vectors.h"
#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

struct KeyFile {
  updraft::testing::TempDir dir;
  std::string path = dir.file("keys");
  void write(const std::string& text, int mode = 0600) const {
    std::ofstream(path) << text;
    REQUIRE(chmod(path.c_str(), static_cast<mode_t>(mode)) == 0);
  }
};

std::string line_of(const std::string& key, const std::string& rest) {
  return "sha256:" + sha256_hex(key) + rest + "\n";
}

}  // namespace

TEST_CASE("a file as it always was is still read: a name, a developer, no limits") {
  const KeyFile file;
  file.write("# clients\n" + line_of("one", " alice") + "\n" + line_of("two", "") +
             "sha256:" + sha256_hex("three") + " phone agent 7\r\n");
  const auto keys = load_api_keys(file.path);
  REQUIRE_MESSAGE(keys.ok(), keys.message());
  REQUIRE(keys->size() == 3);
  CHECK((*keys)[0].name == "alice");
  CHECK((*keys)[0].role == Role::kDeveloper);
  CHECK((*keys)[0].limits == KeyLimits{});
  CHECK((*keys)[0].digest == sha256("one"));
  CHECK((*keys)[1].name.empty());
  CHECK((*keys)[2].name == "phone agent 7");
}

TEST_CASE("role and limits of a key stand behind its name; what is not said is the role's") {
  const KeyFile file;
  file.write(line_of("one", " alice role=admin rpm=60 tpm=100000 concurrent=4") +
             line_of("two", " bob role=guest rpm=5") + line_of("three", " carol role=guest rpm=0"));
  const auto keys = load_api_keys(file.path);
  REQUIRE_MESSAGE(keys.ok(), keys.message());
  CHECK((*keys)[0].role == Role::kAdmin);
  CHECK((*keys)[0].limits == KeyLimits{60, 100'000, 4});
  CHECK((*keys)[1].limits.requests_per_minute == 5);
  CHECK((*keys)[1].limits.tokens_per_minute == default_limits(Role::kGuest).tokens_per_minute);
  CHECK((*keys)[1].limits.concurrent > 0);
  CHECK((*keys)[2].limits.requests_per_minute == 0);
  for (const ApiKey& key : *keys) {
    file.write(api_key_line(key) + "\n");
    const auto again = load_api_keys(file.path);
    REQUIRE_MESSAGE(again.ok(), again.message());
    CHECK((*again)[0].name == key.name);
    CHECK((*again)[0].role == key.role);
    CHECK((*again)[0].limits == key.limits);
  }
}

TEST_CASE("a damaged line is named by file and line, never shown") {
  const KeyFile file;
  const std::string a(64, 'a');
  const std::string good = "sha256:" + std::string(64, 'b');
  for (const std::string& bad :
       {std::string("updraft-secret"), "sha256:" + a.substr(1) + " x", good + "c",
        "sha256:" + std::string(64, 'g'), good + " alice rol=guest", good + " alice role=root",
        good + " alice role=", good + " alice rpm=-1", good + " alice rpm=1e3",
        good + " alice tpm=99999999999999999999", good + " alice role=guest smith", "sha256:" + a + " x"}) {
    file.write("sha256:" + a + " alice\n" + bad + "\n");
    CAPTURE(bad);
    const std::string message = load_api_keys(file.path).message();
    CHECK_MESSAGE(message.find(file.path + ":2: ") != std::string::npos, message);
    if (bad.ends_with("rol=guest")) CHECK(message.find("unknown option 'rol'") != std::string::npos);
    CHECK(message.find("updraft-secret") == std::string::npos);
    CHECK(message.find(a) == std::string::npos);
  }
  file.write("");
  CHECK(load_api_keys(file.path)->empty());
  file.write("", 0666);
  CHECK(load_api_keys(file.path).message().find("chmod") != std::string::npos);
  CHECK_FALSE(load_api_keys(file.dir.file("absent")).ok());
  CHECK(load_api_keys(file.dir.path()).message().find("not a regular file") != std::string::npos);
}

TEST_CASE("names that a line could not hold are refused") {
  CHECK(check_key_name("alice").ok());
  CHECK(check_key_name("phone agent 7").ok());
  for (const std::string& bad : {std::string(), std::string("  "), std::string("a=b"),
                                 std::string("a\nb"), std::string(129, 'a'), std::string("\xff")})
    CHECK_FALSE(check_key_name(bad).ok());
}

TEST_CASE("SHA-256 is SHA-256") {
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("a known key says who it is, everything else is refused") {
  ApiKey alice{sha256("sesame"), "alice", Role::kAdmin, {7, 0, 0}};
  ApiKey bob{sha256("other"), "bob", Role::kGuest, {}};
  const Authenticator door({alice, bob}, {});
  const auto who = door.authenticate("Bearer sesame", 0);
  REQUIRE(std::holds_alternative<Principal>(who));
  CHECK(std::get<Principal>(who).name == "alice");
  CHECK(std::get<Principal>(who).role == Role::kAdmin);
  CHECK(std::get<Principal>(who).limits.requests_per_minute == 7);
  CHECK(std::get<Principal>(who).tenant == sha256_hex("sesame").substr(0, 16));
  CHECK(std::get<Principal>(door.authenticate("bEARER   other", 0)).name == "bob");
  for (const char* bad : {"", "Bearer", "Bearer ", "Basic sesame", "sesame", "Bearer sesam",
                          "Bearer sesame ", "Bearer sesame2", "Bearer a.b.c"})
    CHECK_MESSAGE(std::holds_alternative<Unauthenticated>(door.authenticate(bad, 0)), bad);
  CHECK(std::holds_alternative<Unauthenticated>(Authenticator().authenticate("Bearer x", 0)));
  // The key whose digest is that of nothing opens nothing.
  const Authenticator hollow({ApiKey{sha256(""), "x", Role::kAdmin, {}}}, {});
  CHECK(std::holds_alternative<Unauthenticated>(hollow.authenticate("Bearer ", 0)));
}

TEST_CASE("a token is recognised beside keys; who may be an admin is known") {
  const auto vectors = updraft::testing::jwt_vectors();
  const JwtPolicy policy = updraft::testing::vector_policy(vectors);
  const Authenticator door({ApiKey{sha256("sesame"), "alice", Role::kGuest, {}}}, policy);
  CHECK(door.has_admin());
  CHECK_FALSE(Authenticator({ApiKey{sha256("a"), "alice", Role::kDeveloper, {}}}, {}).has_admin());
  for (const auto& vector : vectors.at("tokens").as_array()) {
    const auto who = door.authenticate("Bearer " + updraft::testing::text_at(vector, "token"),
                                       vectors.at("now").as_int64());
    CHECK(std::holds_alternative<Principal>(who) ==
          updraft::testing::text_at(vector, "says").empty());
  }
}
