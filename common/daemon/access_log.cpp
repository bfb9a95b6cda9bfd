// See the header.
#include "common/daemon/access_log.h"

#include "common/log/log.h"

namespace updraft {

void log_access(const AccessRecord& r) {
  log_info("http", {{"id", r.request_id},
                    {"method", r.method},
                    {"path", r.path},
                    {"status", r.status},
                    {"ms", r.duration_ms},
                    {"ttft_ms", r.ttft_ms},
                    {"prompt_tokens", r.prompt_tokens},
                    {"completion_tokens", r.completion_tokens},
                    {"node", r.node},
                    {"tier", r.tier},
                    {"model", r.model},
                    {"decision", r.decision},
                    {"tenant", r.tenant},
                    {"user", r.user},
                    {"role", r.role},
                    {"trace", r.trace},
                    {"stream", r.stream},
                    {"replayed", r.replayed},
                    {"bytes", r.body_bytes},
                    {"remote", r.remote}});
}

}  // namespace updraft
