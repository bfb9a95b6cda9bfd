// The one rule of who is refused when memory is short.
#pragma once

#include <optional>

#include "common/base/memory_level.h"
#include "common/message/request.h"
#include "common/message/request_error.h"

namespace updraft {

// What a new request of this class is answered at this level: kOverloaded with a time to come back
// after. Nothing: it is taken. kShed: interactive and system are; kRefuse: none is.
std::optional<RequestError> memory_refusal(MemoryLevel level, Priority priority);

}  // namespace updraft
