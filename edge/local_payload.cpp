// See the header.
#include "edge/local_payload.h"

#include <string>
#include <utility>

namespace updraft {

using namespace ipc;

namespace {

RequestError invalid(std::string message) {
  return error_of(ErrorCode::kInvalidRequest, std::move(message));
}

}  // namespace

std::optional<RequestError> place_span(Request& request, const PartSpan& span,
                                       const std::shared_ptr<Segment>& segment) {
  const std::string place =
      "messages[" + std::to_string(span.message) + "].parts[" + std::to_string(span.part) + "]";
  if (span.message >= request.messages.size() ||
      span.part >= request.messages[span.message].parts.size()) {
    return invalid(place + ": a shared-memory part that the request does not have");
  }
  const auto bytes = segment->payload_span(span.offset, span.bytes);
  if (!bytes) {
    return invalid(place + ": [" + std::to_string(span.offset) + ", +" +
                   std::to_string(span.bytes) + ") lies outside the payload area");
  }
  ContentPart& part = request.messages[span.message].parts[span.part];
  if (part.kind == ContentPart::Kind::kImage) {
    part.bytes = SharedBytes(segment, *bytes);
    return std::nullopt;
  }
  part.text.assign(as_text(*bytes));
  if (const size_t valid = utf8_valid_prefix_bytes(part.text); valid != part.text.size())
    return invalid(place + ": not UTF-8 at byte " + std::to_string(valid));
  return std::nullopt;
}

}  // namespace updraft
