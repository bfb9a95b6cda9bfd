// Logging for daemons and tools (libraries return, daemons log): an event and its facts on one
// line, `node lost id=edge-3 silent_ms=3050`. The only place that names spdlog. Nothing per token,
// no prompt text.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

#include "common/base/result.h"

namespace updraft {

enum class LogLevel { kDebug, kInfo, kWarn, kError };
enum class LogFormat { kText, kJson };

struct LogConfig {
  LogLevel level = LogLevel::kInfo;
  LogFormat format = LogFormat::kText;  // kJson: one object per line
  std::string file;                     // empty: standard error
  std::string component;                // "router", "edge-1": on every line
};

// Once, before threads start. Errors: the file cannot be opened.
Result<void> configure_log(const LogConfig& config);
Result<LogLevel> parse_log_level(std::string_view name);

struct LogFact {
  std::string_view key;
  std::variant<std::string_view, int64_t, double, bool> value;

  LogFact(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogFact(std::string_view k, const std::string& v) : key(k), value(std::string_view(v)) {}
  LogFact(std::string_view k, const char* v) : key(k), value(std::string_view(v)) {}
  LogFact(std::string_view k, bool v) : key(k), value(v) {}
  template <typename T>
  requires std::is_integral_v<T> LogFact(std::string_view k, T v)
      : key(k), value(static_cast<int64_t>(v)) {}
  LogFact(std::string_view k, double v) : key(k), value(v) {}
};

// Any thread. Would a line of this level be written? For facts that cost something to make.
bool log_enabled(LogLevel level);
// Any thread.
void log(LogLevel level, std::string_view event, std::initializer_list<LogFact> facts = {});
inline void log_info(std::string_view e, std::initializer_list<LogFact> f = {}) {
  log(LogLevel::kInfo, e, f);
}
inline void log_warn(std::string_view e, std::initializer_list<LogFact> f = {}) {
  log(LogLevel::kWarn, e, f);
}
inline void log_error(std::string_view e, std::initializer_list<LogFact> f = {}) {
  log(LogLevel::kError, e, f);
}
inline void log_debug(std::string_view e, std::initializer_list<LogFact> f = {}) {
  log(LogLevel::kDebug, e, f);
}

}  // namespace updraft
