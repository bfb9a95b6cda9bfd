// How the bytes that a local client placed in shared memory become parts of its request.
//
// Text is snapshotted: copied first, then checked, so that what a parser walks over is what was
// checked. Token ids are, too. Images and rows of embeddings are not copied: the request gets a
// view of the mapped segment that keeps it mapped until the request is done, also when the client
// dies meanwhile. The client may rewrite those bytes at any time; a decoder treats them as
// shared_bytes.h says, the engine judges each value of a row after it has copied it, and the harm
// is the client's own answer.
#pragma once

#include <optional>

#include "common/ipc/layout.h"
#include "common/message/request.h"
#include "common/message/request_error.h"
#include "edge/local_memory.h"

namespace updraft {

// Puts the bytes that `span` names where it says. An error names the part and what is wrong with
// the span; the request is then unfit.
std::optional<RequestError> place_span(Request& request, const ipc::PartSpan& span,
                                       LocalMemory& memory);

// What each image of the request is, by its header (common/image/image_info.h). The error names the
// first part that is broken, lies about its type or is too large.
std::optional<RequestError> check_images(const Request& request);

}  // namespace updraft
