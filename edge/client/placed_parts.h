// The large parts of a request, which lie in the payload area instead of in the request.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "common/base/result.h"
#include "common/message/request.h"
#include "edge/client/local_client.h"

namespace updraft {

// As LocalClient::allocate().
using AllocateBuffer = std::function<Result<LocalClient::Buffer>(uint64_t bytes)>;

// Moves what is larger than 4 KiB and not placed yet into buffers of its own, behind those in
// `placed`; an image whose bytes lie elsewhere carries one byte in their place. Errors: those of
// `allocate`; kTooLarge: more parts than a submission names; kBadArgument: `placed` names a part
// that the request has not. On an error the buffers in `placed` are the caller's.
Result<void> place_large_parts(Request& request, std::vector<LocalClient::PlacedPart>& placed,
                               const AllocateBuffer& allocate);

}  // namespace updraft
