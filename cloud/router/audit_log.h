// What administrators did: one JSON line per act in a file of its own, appended and never changed.
//
// Threads: any.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "common/auth/principal.h"
#include "common/base/result.h"
#include "common/log/append_file.h"

namespace updraft {

struct AuditEntry {
  std::string tenant, user, role;  // who; empty: nobody was recognised
  std::string remote;              // from where
  std::string act;                 // "drain", "undrain", "reload", "denied"
  std::string object;              // of the act: a node's id, a path
  std::string outcome;             // "ok", or why not
};

class AuditLog {
 public:
  // Appends to `path`, made with mode 0600. Error: names the path and why.
  static Result<std::unique_ptr<AuditLog>> open(const std::string& path);

  // The line is with the kernel when this returns; where that fails, the entry and why go to the
  // daemon's log instead.
  void write(const AuditEntry& entry);

 private:
  explicit AuditLog(AppendFile file) : file_(std::move(file)) {}
  AppendFile file_;
  std::mutex mutex_;  // one line at a time
};

}  // namespace updraft
