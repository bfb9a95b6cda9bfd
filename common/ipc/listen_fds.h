// Socket activation: the local handoff's listening socket may have been made by whoever started the
// daemon (systemd's protocol, sd_listen_fds(3): LISTEN_PID, LISTEN_FDS, descriptors from 3 on).
// Then clients can connect before the daemon runs and while it restarts.
#pragma once

#include <string>

#include "common/base/result.h"
#include "common/ipc/segment.h"

namespace updraft::ipc {

struct LocalListener {
  UniqueFd fd;
  bool inherited = false;  // the socket's file belongs to whoever made it: do not unlink it
};

// The inherited socket when LISTEN_PID names this process, else listen_unix(path). Errors: of
// listen_unix; more than one inherited descriptor; one that is no listening Unix SOCK_SEQPACKET
// socket, or is bound to another path than `path`. Takes the variables out of the environment, so
// that child processes do not see them: call before other threads read it.
Result<LocalListener> listen_or_inherit(const std::string& path);

}  // namespace updraft::ipc
