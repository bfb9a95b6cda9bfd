// How a session of a local client begins, mapped or not, and what it says when it has ended.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/result.h"
#include "common/ipc/segment.h"
#include "common/message/handshake.h"
#include "edge/client/local_client.h"

namespace updraft {

inline constexpr int kHandshakeTimeoutMs = 5000;

struct Handshaken {
  ipc::UniqueFd socket;
  LocalWelcome welcome;
};

// The first half of the handshake, with the descriptors of a mapped session (ipc/layout.h); the
// daemon's answer comes on the socket. Errors: kNoDaemon.
Result<ipc::UniqueFd> say_hello(const LocalClientOptions& options, const std::vector<int>& fds);
// The second. Errors: kTimeout: no answer yet; kRefused, kNoDaemon.
Result<LocalWelcome> hear_welcome(const LocalClientOptions& options, const ipc::UniqueFd& socket,
                                  int timeout_ms);
// Both, within kHandshakeTimeoutMs.
Result<Handshaken> shake_hands(const LocalClientOptions& options, const std::vector<int>& fds);

Error gone_error();

}  // namespace updraft
