// Unix sockets for the handshake of the local handoff: whole messages (SOCK_SEQPACKET) with file
// descriptors beside them, and who the caller is as the kernel says it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/ipc/segment.h"

namespace updraft::ipc {

inline constexpr size_t kHandshakeBytesMax = 16 * 1024;
inline constexpr size_t kHandshakeFdsMax = 4;

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
};

struct SocketMessage {
  std::vector<std::byte> bytes;
  std::vector<UniqueFd> fds;
  bool hung_up = false;  // the peer closed; bytes and fds are empty
};

// Listens at `path` with mode 0600, in a folder that is made with mode 0700 when it is not there. A
// socket left behind by a dead daemon is replaced; one that a living daemon answers on is an error,
// and so is a path over 107 bytes.
Result<UniqueFd> listen_unix(const std::string& path);
Result<UniqueFd> connect_unix(const std::string& path);
// The next waiting connection, or an empty descriptor when there is none.
Result<UniqueFd> accept_unix(const UniqueFd& listener);

Result<PeerCredentials> peer_credentials(const UniqueFd& socket);  // SO_PEERCRED: at connect time
Result<UniqueFd> peer_pidfd(pid_t pid);  // readable once the process is dead

Result<void> send_message(const UniqueFd& socket, ByteView bytes, const std::vector<int>& fds = {});
// One message; waits at most timeout_ms (0: only what is there, then bytes stay empty and hung_up
// false). A message with more than kHandshakeBytesMax bytes or kHandshakeFdsMax descriptors is an
// error.
Result<SocketMessage> receive_message(const UniqueFd& socket, int timeout_ms);

}  // namespace updraft::ipc
