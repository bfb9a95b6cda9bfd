// Configuration files: TOML -> struct with defaults -> validated -> const. The only place that
// names toml++. Every error names file, line and key: "configs/edge.toml:12: [model] slots = 0 is
// not in 1..256".
//
//   Result<TomlFile> file = TomlFile::open(path);
//   file->get("model.slots", config.slots, 1, 256);   // absent: the default stays
//   if (auto done = file->finish(); !done) return done.error();   // first problem, or an unknown
//   key
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"

namespace updraft {

// Every setting that a file or an override gives, "section.key" and its value as text: to compare
// two readings of a configuration.
using Settings = std::map<std::string, std::string>;
// The names of those that are in one alone or have another value in each.
std::vector<std::string> changed_settings(const Settings& before, const Settings& after);

class TomlFile {
 public:
  static Result<TomlFile> open(const std::string& path);
  // From text; `name` stands in messages where the path would.
  static Result<TomlFile> parse(const std::string& text, const std::string& name);
  ~TomlFile();
  TomlFile(TomlFile&&) noexcept;
  TomlFile& operator=(TomlFile&&) noexcept;

  // Dotted key "section.key". An absent key leaves `out` as it is. A wrong type or a value out of
  // range is remembered and reported by finish(). Bounds are inclusive.
  void get(const char* key, std::string& out);
  void get(const char* key, bool& out);
  void get(const char* key, int32_t& out, int64_t min, int64_t max);
  void get(const char* key, int64_t& out, int64_t min, int64_t max);
  void get(const char* key, uint16_t& out, int64_t min, int64_t max);
  void get(const char* key, uint64_t& out, int64_t min, int64_t max);
  void get(const char* key, std::vector<std::string>& out);
  void get(const char* key, std::vector<int32_t>& out, int64_t min, int64_t max);
  // One of the given words.
  void get_choice(const char* key, std::string& out, const std::vector<std::string>& choices);
  // Bytes: an integer or a text such as "512 MiB", "2 GB".
  void get_bytes(const char* key, uint64_t& out);
  // A path: relative ones are resolved against the configuration file's folder. Empty stays empty.
  void get_path(const char* key, std::string& out);
  bool has(const char* key) const;
  // A problem found by the caller's own validation, reported at the key's line.
  void refuse(const char* key, const std::string& why);

  // The first problem, or an error for the first key that nobody asked for (with the nearest known
  // key as a hint).
  Result<void> finish();
  const std::string& name() const;
  // What was asked for so far and given.
  Settings settings() const;

 private:
  struct State;
  explicit TomlFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A value given on the command line, "section.key=value": wins over the environment
// (UPDRAFT_SECTION_KEY), which wins over the file. Call before the file is read, from the main
// thread. A key that the file's reader does not know is an error of finish().
Result<void> add_config_override(const std::string& assignment);
void clear_config_overrides();

// "512 MiB" -> bytes; units B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (powers of 1024); plain
// numbers are bytes.
Result<uint64_t> parse_bytes(const std::string& text);

}  // namespace updraft
