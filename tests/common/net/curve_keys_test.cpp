// Key files: what is written is read back, and nothing that others could read or exchange is used.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

#include "common/net/pool_socket.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using updraft::testing::TempDir;

namespace {
void write_text(const std::string& path, const std::string& text, mode_t mode) {
  std::ofstream(path) << text;
  REQUIRE(chmod(path.c_str(), mode) == 0);
}
}  // namespace

TEST_CASE("saved keys are read back, with modes that keep the secret") {
  const TempDir dir;
  const CurveKeys keys = new_curve_keys();
  CHECK(keys.public_key.size() == 40);
  CHECK(keys.secret_key.size() == 40);
  REQUIRE(save_curve_keys(keys, dir.file("node")).ok());
  struct stat info {};
  REQUIRE(stat(dir.file("node").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  const auto loaded = load_curve_keys(dir.file("node"));
  REQUIRE_MESSAGE(loaded.ok(), loaded.message());
  CHECK(loaded->public_key == keys.public_key);
  CHECK(loaded->secret_key == keys.secret_key);
  CHECK(*load_public_key(dir.file("node.pub")) == keys.public_key);
  CHECK(save_curve_keys(keys, dir.file("node")).message().find("File exists") != std::string::npos);
}

TEST_CASE("a secret key that others can read is refused with its mode") {
  const TempDir dir;
  REQUIRE(save_curve_keys(new_curve_keys(), dir.file("node")).ok());
  for (const mode_t mode : {0644, 0640, 0620, 0601}) {
    REQUIRE(chmod(dir.file("node").c_str(), mode) == 0);
    const std::string why = load_curve_keys(dir.file("node")).message();
    CAPTURE(why);
    CHECK(why.find(dir.file("node")) != std::string::npos);
    CHECK(why.find("chmod 0600") != std::string::npos);
  }
}

TEST_CASE("tampered key files are refused with file and line") {
  const TempDir dir;
  const CurveKeys a = new_curve_keys();
  const CurveKeys b = new_curve_keys();
  const std::string path = dir.file("k");
  write_text(path, "public " + a.public_key + "\nsecret " + b.secret_key + "\n", 0600);
  CHECK(load_curve_keys(path).message().find("does not belong") != std::string::npos);
  write_text(path, "public " + a.public_key + "\n", 0600);
  CHECK(load_curve_keys(path).message().find("needs") != std::string::npos);
  write_text(path, "# c\npublic short\n", 0600);
  CHECK(load_curve_keys(path).message().find(path + ":2") != std::string::npos);
  write_text(path, "hello\n", 0600);
  CHECK(load_curve_keys(path).message().find(path + ":1") != std::string::npos);
  write_text(path, "public " + a.public_key + "\npublic " + a.public_key + "\n", 0600);
  CHECK(load_curve_keys(path).message().find("second") != std::string::npos);
  write_text(path, std::string(5000, 'x'), 0600);
  CHECK(load_curve_keys(path).message().find("larger") != std::string::npos);
  CHECK(load_curve_keys(dir.path()).message().find("not a regular file") != std::string::npos);
  const std::string absent = dir.file("absent");
  CHECK(load_curve_keys(absent).message() ==
        "key file " + absent +
            ": No such file or directory (make it with: updraft "
            "keys new " +
            absent + ")");
  write_text(path, "public " + a.public_key + "\nsecret " + a.secret_key + "\n", 0644);
  CHECK(load_public_key(path).message().find("secret key where a public") != std::string::npos);
}

TEST_CASE("the allow-list is every .pub file of a folder, by name") {
  const TempDir dir;
  const CurveKeys a = new_curve_keys();
  const CurveKeys b = new_curve_keys();
  write_text(dir.file("edge-2.pub"), "public " + b.public_key + "\n", 0644);
  write_text(dir.file("edge-1.pub"), "public " + a.public_key + "\n", 0644);
  write_text(dir.file("README"), "not a key", 0644);
  const auto list = load_allowed_keys(dir.path());
  REQUIRE_MESSAGE(list.ok(), list.message());
  REQUIRE(list->size() == 2);
  CHECK((*list)[0].name == "edge-1");
  CHECK((*list)[0].public_key == a.public_key);
  CHECK((*list)[1].name == "edge-2");

  write_text(dir.file("twin.pub"), "public " + a.public_key + "\n", 0644);
  CHECK(load_allowed_keys(dir.path()).message().find("the same key as") != std::string::npos);
  write_text(dir.file("twin.pub"), "public nonsense\n", 0644);
  CHECK(load_allowed_keys(dir.path()).message().find("twin.pub:1") != std::string::npos);
  write_text(dir.file("twin.pub"), "public " + new_curve_keys().public_key + "\n", 0666);
  CHECK(load_allowed_keys(dir.path()).message().find("0666") != std::string::npos);
  CHECK(load_allowed_keys(dir.file("nowhere")).message().find("nowhere") != std::string::npos);
}
