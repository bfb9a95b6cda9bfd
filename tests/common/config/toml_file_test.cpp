// Configuration files: what is wrong is named with file, line and key.
#include "common/config/toml_file.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>

#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

TomlFile parsed(const std::string& text) {
  Result<TomlFile> file = TomlFile::parse(text, "edge.toml");
  REQUIRE_MESSAGE(file.ok(), file.message());
  return std::move(file).value();
}

}  // namespace

TEST_CASE("values are read and absent keys keep their defaults") {
  TomlFile file = parsed(
      "[model]\npath = \"a.gguf\"\nslots = 4\ncores = [0, 1]\nmax_memory = \"1.5 GiB\"\npin = "
      "true\n");
  std::string path;
  int32_t slots = 1;
  int32_t queue = 256;
  std::vector<int32_t> cores;
  uint64_t memory = 0;
  bool pin = false;
  file.get("model.path", path);
  file.get("model.slots", slots, 1, 256);
  file.get("model.queue_max", queue, 1, 1000);
  file.get("model.cores", cores, 0, 1023);
  file.get_bytes("model.max_memory", memory);
  file.get("model.pin", pin);
  const Result<void> done = file.finish();
  CHECK_MESSAGE(done.ok(), done.message());
  CHECK(path == "a.gguf");
  CHECK(slots == 4);
  CHECK(queue == 256);
  CHECK(cores == std::vector<int32_t>{0, 1});
  CHECK(memory == 1610612736);
  CHECK(pin);
}

TEST_CASE("a value out of range names file, line, key, value and range") {
  TomlFile file = parsed("[model]\n\nslots = 0\n");
  int32_t slots = 1;
  file.get("model.slots", slots, 1, 256);
  CHECK(file.finish().message() == "edge.toml:3: [model] slots = 0 is not in 1..256");
  CHECK(slots == 1);
}

TEST_CASE("a wrong type says what is there and what is wanted") {
  TomlFile file = parsed("[model]\nslots = \"four\"\n");
  int32_t slots = 1;
  file.get("model.slots", slots, 1, 256);
  CHECK(file.finish().message() ==
        "edge.toml:2: [model] slots is a text, an integer in 1..256 is wanted");
}

TEST_CASE("an unknown key is refused with its nearest relative") {
  TomlFile file = parsed("[model]\nslotz = 3\n");
  int32_t slots = 1;
  file.get("model.slots", slots, 1, 256);
  CHECK(file.finish().message() ==
        "edge.toml:2: [model] slotz is not a known key (did you mean [model] slots?)");
}

TEST_CASE("a syntax error names line and column") {
  const Result<TomlFile> file = TomlFile::parse("[model\nslots = 1\n", "edge.toml");
  REQUIRE_FALSE(file.ok());
  CHECK(file.message().rfind("edge.toml:1:", 0) == 0);
}

TEST_CASE("the environment wins over the file and is checked the same way") {
  setenv("UPDRAFT_MODEL_SLOTS", "7", 1);
  TomlFile file = parsed("[model]\nslots = 3\n");
  int32_t slots = 1;
  file.get("model.slots", slots, 1, 256);
  CHECK(file.finish().ok());
  CHECK(slots == 7);
  setenv("UPDRAFT_MODEL_SLOTS", "many", 1);
  TomlFile second = parsed("");
  second.get("model.slots", slots, 1, 256);
  CHECK(second.finish().message() == "UPDRAFT_MODEL_SLOTS: \"many\" is not an integer in 1..256");
  unsetenv("UPDRAFT_MODEL_SLOTS");
}

TEST_CASE("the command line wins over the environment, and an unknown key there is refused") {
  setenv("UPDRAFT_MODEL_SLOTS", "7", 1);
  REQUIRE(add_config_override("model.slots=9").ok());
  TomlFile file = parsed("[model]\nslots = 3\n");
  int32_t slots = 1;
  file.get("model.slots", slots, 1, 256);
  CHECK(file.finish().ok());
  CHECK(slots == 9);
  REQUIRE(add_config_override("model.slotz=9").ok());
  CHECK(file.finish().message() == "--set model.slotz: not a known key of edge.toml");
  CHECK_FALSE(add_config_override("model.slots").ok());
  clear_config_overrides();
  unsetenv("UPDRAFT_MODEL_SLOTS");
}

TEST_CASE("relative paths are resolved against the file's folder") {
  const testing::TempDir dir;
  std::ofstream(dir.file("edge.toml")) << "[model]\npath = \"models/a.gguf\"\n";
  Result<TomlFile> file = TomlFile::open(dir.file("edge.toml"));
  REQUIRE(file.ok());
  std::string path;
  file->get_path("model.path", path);
  CHECK(path == dir.path() + "/models/a.gguf");
}

TEST_CASE("a file that is not there is one clear line") {
  CHECK(TomlFile::open("/nonexistent/edge.toml").message() ==
        "/nonexistent/edge.toml: cannot be read as a configuration file");
}

TEST_CASE("a choice outside the list is named with the list") {
  TomlFile file = parsed("[log]\nlevel = \"loud\"\n");
  std::string level = "info";
  file.get_choice("log.level", level, {"info", "warn"});
  CHECK(file.finish().message() == "edge.toml:2: [log] level = \"loud\" is none of info, warn");
}

TEST_CASE("bytes are read with decimal and binary units") {
  CHECK(parse_bytes("1048576").value() == 1048576);
  CHECK(parse_bytes("512 MiB").value() == 536870912);
  CHECK(parse_bytes("2GB").value() == 2000000000);
  CHECK_FALSE(parse_bytes("2 bananas").ok());
  CHECK_FALSE(parse_bytes("-1").ok());
  CHECK_FALSE(parse_bytes("").ok());
}
