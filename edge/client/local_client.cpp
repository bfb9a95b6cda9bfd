// Which of a client's two ways in: a mapped segment with rings, or whole requests over the control
// channel.
#include "edge/client/local_client.h"

#include <unistd.h>

#include <cstdlib>

#include "edge/client/mapped_client.h"
#include "edge/client/unmapped_client.h"

namespace updraft {

std::string default_local_socket() {
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR");
      runtime != nullptr && runtime[0] == '/') {
    return std::string(runtime) + "/updraft/edge.sock";
  }
  return "/tmp/updraft-" + std::to_string(getuid()) + "/edge.sock";
}

Result<std::unique_ptr<LocalClient>> LocalClient::connect(const LocalClientOptions& options) {
  return options.map_memory ? MappedClient::connect(options) : connect_unmapped(options);
}

}  // namespace updraft
