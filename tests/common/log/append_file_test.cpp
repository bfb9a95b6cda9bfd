#include "common/log/append_file.h"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "common/log/log.h"

using namespace updraft;

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "updraft-log-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::string text_of(const std::filesystem::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// While it lives, no file of this process grows beyond so many bytes: a disk that is full there.
class FullAt {
 public:
  explicit FullAt(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullAt() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int) = nullptr;
};

}  // namespace

TEST_CASE("a full disk refuses a line whole, and the next line that fits is whole again") {
  const Folder folder;
  const auto path = folder.path / "lines";
  auto file = AppendFile::open(path.string(), 0600);
  REQUIRE(file);
  CHECK(file->append("first\n"));
  {
    const FullAt full(10);
    const auto torn = file->append("second\n");  // 4 of its 7 bytes would fit
    REQUIRE_FALSE(torn);
    CHECK(torn.message().find(path.string()) != std::string::npos);
    CHECK_FALSE(file->append("third line\n"));
  }
  CHECK(file->append("fourth\n"));
  CHECK(text_of(path) == "first\nfourth\n");
}

TEST_CASE("a line that a killed process left without an end gets one before the next line") {
  const Folder folder;
  const auto path = folder.path / "lines";
  std::ofstream(path) << "first\nsec";
  auto file = AppendFile::open(path.string(), 0600);
  REQUIRE(file);
  {
    const FullAt full(9);
    CHECK_FALSE(file->append("third\n"));  // there is no room even for that end
  }
  CHECK(file->append("fourth\n"));
  CHECK(file->append("fifth\n"));
  CHECK(text_of(path) == "first\nsec\nfourth\nfifth\n");
}

TEST_CASE("a file that somebody else cut goes on from its new end") {
  const Folder folder;
  const auto path = folder.path / "lines";
  auto file = AppendFile::open(path.string(), 0600);
  REQUIRE(file);
  CHECK(file->append("first\n"));
  std::filesystem::resize_file(path, 0);  // logrotate's copytruncate
  CHECK(file->append("second\n"));
  CHECK(text_of(path) == "second\n");
}

TEST_CASE("a path that cannot be opened is named") {
  const auto file = AppendFile::open("/nowhere/at/all", 0600);
  REQUIRE_FALSE(file);
  CHECK(file.message() == "/nowhere/at/all: No such file or directory");
}

TEST_CASE("a device without room refuses every line") {
  auto file = AppendFile::open("/dev/full", 0600);
  REQUIRE(file);
  CHECK_FALSE(file->append("line\n"));
  CHECK_FALSE(file->append("line\n"));
}

TEST_CASE("a daemon's log keeps whole lines through a full disk") {
  const Folder folder;
  const auto path = folder.path / "log";
  REQUIRE(configure_log({.format = LogFormat::kJson, .file = path.string(), .component = "test"}));
  log_info("first", {{"n", 1}});
  {
    const FullAt full(text_of(path).size() + 20);
    log_info("second", {{"n", 2}});
    log_info("third", {{"n", 3}});
  }
  log_info("fourth", {{"n", 4}});
  std::istringstream lines(text_of(path));
  std::string line;
  int count = 0;
  while (std::getline(lines, line)) {
    ++count;
    CHECK(line.substr(0, 9) == "{\"time\":\"");
    CHECK(line.find("{\"time\"", 1) == std::string::npos);
    CHECK(line.back() == '}');
  }
  CHECK(count == 2);
}
