// See the header.
#include "cloud/router/audit_log.h"

#include <chrono>
#include <cstdio>
#include <ctime>

#include "common/http/json_text.h"
#include "common/log/log.h"

namespace updraft {
namespace {

// "2026-01-31T23:59:59.123Z"
std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  tm utc{};
  gmtime_r(&seconds, &utc);
  char text[64];
  std::snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", utc.tm_year + 1900,
                utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec,
                static_cast<int>(ms));
  return text;
}

std::string line_of(const AuditEntry& entry) {
  std::string line = "{\"time\":\"" + utc_now() + "\"";
  for (const auto& [name, value] :
       {std::pair("act", &entry.act), std::pair("object", &entry.object),
        std::pair("outcome", &entry.outcome), std::pair("user", &entry.user),
        std::pair("tenant", &entry.tenant), std::pair("role", &entry.role),
        std::pair("remote", &entry.remote)}) {
    line += std::string(",\"") + name + "\":" + json_string(*value);
  }
  return line + "}\n";
}

}  // namespace

Result<std::unique_ptr<AuditLog>> AuditLog::open(const std::string& path) {
  auto file = AppendFile::open(path, 0600);
  if (!file) return fail("audit log " + file.message());
  return std::unique_ptr<AuditLog>(new AuditLog(std::move(*file)));
}

void AuditLog::write(const AuditEntry& entry) {
  const std::string line = line_of(entry);
  const std::lock_guard lock(mutex_);
  const auto written = file_.append(line);
  if (written) return;
  log_error("audit log not written", {{"why", written.message()},
                                      {"act", entry.act},
                                      {"object", entry.object},
                                      {"outcome", entry.outcome},
                                      {"user", entry.user},
                                      {"remote", entry.remote}});
}

}  // namespace updraft
