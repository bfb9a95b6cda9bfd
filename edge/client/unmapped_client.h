// For clients that cannot map memory: whole requests as messages over the control channel.
#pragma once

#include <memory>

#include "common/base/result.h"
#include "edge/client/local_client.h"

namespace updraft {

// Errors: those of the handshake; the control channel cannot be opened.
Result<std::unique_ptr<LocalClient>> connect_unmapped(const LocalClientOptions& options);

}  // namespace updraft
