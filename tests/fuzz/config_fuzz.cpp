// Fuzzes configuration files. Whatever the text is, reading it ends in values within their ranges
// or in an error that names the file; the same text is read in the same way again.
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/check.h"
#include "common/config/toml_file.h"

using namespace updraft;

namespace {

struct Values {
  std::string text = "x", choice = "info", path;
  bool flag = false;
  int32_t small = 5;
  int64_t large = 1;
  uint16_t port = 80;
  uint64_t bytes = 1, unsigned_large = 1;
  std::vector<std::string> texts;
  std::vector<int32_t> numbers;
  bool operator==(const Values&) const = default;
};

// The keys of the router's file and one of each kind that it lacks; empty message: all was well.
std::string read(const std::string& text, Values& values) {
  auto parsed = TomlFile::parse(text, "fuzz.toml");
  if (!parsed) return parsed.message();
  TomlFile& file = *parsed;
  file.get("router.id", values.text);
  file.get("http.tls_proxy", values.flag);
  file.get("http.port", values.port, 0, 65535);
  file.get("queue.max", values.small, 1, 1000);
  file.get("queue.timeout_ms", values.large, -5, int64_t{1} << 40);
  file.get("cache.seed", values.unsigned_large, 0, INT64_MAX);
  file.get("http.allowed_hosts", values.texts);
  file.get("model.stops", values.numbers, -1, 99);
  file.get_choice("log.level", values.choice, {"debug", "info", "warn", "error"});
  file.get_bytes("http.body_bytes_max", values.bytes);
  file.get_path("pool.key", values.path);
  const auto end = file.finish();
  return end ? std::string() : end.message();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  Values first;
  Values second;
  const std::string error = read(text, first);
  UPDRAFT_CHECK(error == read(text, second) && first == second);
  if (!error.empty()) {
    UPDRAFT_CHECK(error.starts_with("fuzz.toml") && is_utf8(error));
    return 0;
  }
  UPDRAFT_CHECK(first.small >= 1 && first.small <= 1000);
  UPDRAFT_CHECK(first.large >= -5 && first.large <= int64_t{1} << 40);
  UPDRAFT_CHECK(first.choice == "debug" || first.choice == "info" || first.choice == "warn" ||
                first.choice == "error");
  for (const int32_t number : first.numbers) UPDRAFT_CHECK(number >= -1 && number <= 99);
  return 0;
}
