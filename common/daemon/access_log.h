// A node's access log: one line per answered HTTP request.
#pragma once

#include "common/http/server.h"

namespace updraft {

// `http id=... method=... path=... status=...`. Any thread.
void log_access(const AccessRecord& record);

}  // namespace updraft
