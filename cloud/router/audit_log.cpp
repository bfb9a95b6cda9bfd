// See the header.
#include "cloud/router/audit_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
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
  const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return fail("audit log " + path + ": " + std::strerror(errno));
  return std::unique_ptr<AuditLog>(new AuditLog(path, fd));
}

AuditLog::~AuditLog() { close(fd_); }

void AuditLog::write(const AuditEntry& entry) {
  const std::string line = line_of(entry);
  const std::lock_guard lock(mutex_);
  ssize_t written = 0;
  do {
    written = ::write(fd_, line.data(), line.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(line.size())) return;
  log_error("audit log not written", {{"file", path_},
                                      {"why", written < 0 ? std::strerror(errno) : "no room"},
                                      {"act", entry.act},
                                      {"object", entry.object},
                                      {"outcome", entry.outcome},
                                      {"user", entry.user},
                                      {"remote", entry.remote}});
}

}  // namespace updraft
