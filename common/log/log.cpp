// Log lines as text or JSON, through spdlog.
#include "common/log/log.h"

#include <spdlog/fmt/fmt.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>
#include <utility>

#include "common/log/append_file.h"

namespace updraft {
namespace {

struct State {
  std::shared_ptr<spdlog::logger> logger;
  LogConfig config;
};

// Whole lines only. What a full disk refuses is lost; spdlog says so on standard error, once a
// second at most.
class FileSink final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  explicit FileSink(AppendFile file) : file_(std::move(file)) {}

 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    const auto appended = file_.append({line.data(), line.size()});
    if (!appended) throw spdlog::spdlog_ex("line not written: " + appended.message());
  }
  void flush_() override {}

  AppendFile file_;
};

State& state() {
  static State instance{std::make_shared<spdlog::logger>(
                            "updraft", std::make_shared<spdlog::sinks::stderr_sink_mt>()),
                        {}};
  return instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Quotes and escapes as JSON strings do (RFC 8259, section 7).
void append_quoted(std::string& out, std::string_view text) {
  out.push_back('"');
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (byte < 0x20) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

bool needs_quotes(std::string_view text) {
  if (text.empty()) return true;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '=' || c == '\\') return true;
  }
  return false;
}

void append_value(std::string& out, const LogFact& fact, LogFormat format) {
  if (const auto* text = std::get_if<std::string_view>(&fact.value)) {
    if (format == LogFormat::kJson || needs_quotes(*text)) {
      append_quoted(out, *text);
    } else {
      out += *text;
    }
  } else if (const auto* integer = std::get_if<int64_t>(&fact.value)) {
    out += fmt::format("{}", *integer);
  } else if (const auto* real = std::get_if<double>(&fact.value)) {
    out += fmt::format("{:.6g}", *real);
  } else {
    out += std::get<bool>(fact.value) ? "true" : "false";
  }
}

}  // namespace

Result<void> configure_log(const LogConfig& config) {
  std::shared_ptr<spdlog::sinks::sink> sink;
  if (config.file.empty()) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    auto file = AppendFile::open(config.file, 0644);
    if (!file) return fail("log file " + file.message());
    sink = std::make_shared<FileSink>(std::move(*file));
  }
  auto logger = std::make_shared<spdlog::logger>("updraft", sink);
  logger->set_level(to_spdlog(config.level));
  logger->flush_on(spdlog::level::info);
  if (config.format == LogFormat::kJson) {
    std::string component;
    append_quoted(component, config.component);
    logger->set_pattern("{\"time\":\"%Y-%m-%dT%H:%M:%S.%e%z\",\"level\":\"%l\",\"component\":" +
                        component + ",%v}");
  } else {
    logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L " +
                        (config.component.empty() ? std::string() : config.component + " ") + "%v");
  }
  state() = State{std::move(logger), config};
  return {};
}

Result<LogLevel> parse_log_level(std::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warn") return LogLevel::kWarn;
  if (name == "error") return LogLevel::kError;
  return fail("log level \"" + std::string(name) + "\" is none of debug, info, warn, error");
}

bool log_enabled(LogLevel level) { return state().logger->should_log(to_spdlog(level)); }

void log(LogLevel level, std::string_view event, std::initializer_list<LogFact> facts) {
  State& s = state();
  if (!s.logger->should_log(to_spdlog(level))) return;
  std::string line;
  if (s.config.format == LogFormat::kJson) {
    line = "\"event\":";
    append_quoted(line, event);
    for (const LogFact& fact : facts) {
      line.push_back(',');
      append_quoted(line, fact.key);
      line.push_back(':');
      append_value(line, fact, LogFormat::kJson);
    }
  } else {
    line = event;
    for (const LogFact& fact : facts) {
      line.push_back(' ');
      line += fact.key;
      line.push_back('=');
      append_value(line, fact, LogFormat::kText);
    }
  }
  s.logger->log(to_spdlog(level), "{}", line);
}

}  // namespace updraft
