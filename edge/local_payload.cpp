// See the header.
#include "edge/local_payload.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/image/image_info.h"
#include "common/message/request_check.h"

namespace updraft {

using namespace ipc;

namespace {

RequestError invalid(std::string message) {
  return error_of(ErrorCode::kInvalidRequest, std::move(message));
}

// The text or the ids of a whole prompt or part, copied before they are checked.
std::optional<RequestError> copy_text(const std::string& place, ByteView from, std::string& to) {
  to.assign(as_text(from));
  if (const size_t valid = utf8_valid_prefix_bytes(to); valid != to.size())
    return invalid(place + ": not UTF-8 at byte " + std::to_string(valid));
  return std::nullopt;
}

std::optional<RequestError> copy_ids(const std::string& place, ByteView from,
                                     std::vector<int32_t>& to) {
  if (from.size() % sizeof(int32_t) != 0) {
    return invalid(place + ": " + std::to_string(from.size()) +
                   " bytes are no whole number of token ids of 4 bytes");
  }
  to.resize(from.size() / sizeof(int32_t));
  if (!to.empty()) std::memcpy(to.data(), from.data(), from.size());
  return std::nullopt;
}

std::optional<RequestError> place_part(const std::string& place, const SharedBytes& from,
                                       PromptPart& to) {
  switch (to.kind) {
    case PromptPart::Kind::kText:
      return copy_text(place, from.view(), to.text);
    case PromptPart::Kind::kIds:
      return copy_ids(place, from.view(), to.ids);
    case PromptPart::Kind::kEmbeddings:
      to.rows.bytes = from;
      if (const auto problem = embedding_problem(to.rows)) return invalid(place + " " + *problem);
      return std::nullopt;
  }
  return std::nullopt;
}

std::string place_of(const PartSpan& span) {
  const std::string index = "[" + std::to_string(span.index) + "]";
  switch (span.target) {
    case SpanTarget::kPrompt:
      return "prompts" + index;
    case SpanTarget::kPromptIds:
      return "prompt_ids" + index;
    case SpanTarget::kPromptPart:
      return "prompt_parts" + index;
    default:
      return "messages" + index + ".parts[" + std::to_string(span.part) + "]";
  }
}

bool has_place(const Request& request, const PartSpan& span) {
  switch (span.target) {
    case SpanTarget::kPart:
      return span.index < request.messages.size() &&
             span.part < request.messages[span.index].parts.size();
    case SpanTarget::kPrompt:
      return span.index < request.prompts.size();
    case SpanTarget::kPromptIds:
      return span.index < request.prompt_ids.size();
    case SpanTarget::kPromptPart:
      return span.index < request.prompt_parts.size();
  }
  return false;  // a target that this daemon does not know
}

}  // namespace

std::optional<RequestError> place_span(Request& request, const PartSpan& span,
                                       LocalMemory& memory) {
  const std::string place = place_of(span);
  if (!has_place(request, span))
    return invalid(place + ": a shared-memory part that the request does not have");
  const std::optional<SharedBytes> bytes = memory.bytes(span.segment, span.offset, span.bytes);
  if (!bytes) {
    return invalid(place + ": [" + std::to_string(span.offset) + ", +" +
                   std::to_string(span.bytes) + ") lies outside the payload area of segment " +
                   std::to_string(span.segment) + ", or there is no such segment");
  }
  if (span.target == SpanTarget::kPrompt)
    return copy_text(place, bytes->view(), request.prompts[span.index]);
  if (span.target == SpanTarget::kPromptIds)
    return copy_ids(place, bytes->view(), request.prompt_ids[span.index]);
  if (span.target == SpanTarget::kPromptPart)
    return place_part(place, *bytes, request.prompt_parts[span.index]);
  ContentPart& part = request.messages[span.index].parts[span.part];
  if (part.kind == ContentPart::Kind::kText) return copy_text(place, bytes->view(), part.text);
  part.bytes = *bytes;
  return std::nullopt;
}

std::optional<RequestError> check_images(const Request& request) {
  for (size_t m = 0; m < request.messages.size(); ++m) {
    const std::vector<ContentPart>& parts = request.messages[m].parts;
    for (size_t p = 0; p < parts.size(); ++p) {
      if (parts[p].kind != ContentPart::Kind::kImage) continue;
      const Result<ImageInfo> info = image_info(parts[p].mime, parts[p].bytes.view());
      if (info) continue;
      const std::string place =
          "messages[" + std::to_string(m) + "].content[" + std::to_string(p) + "]";
      RequestError error = invalid(place + " is " + info.message());
      error.param = place;
      return error;
    }
  }
  return std::nullopt;
}

}  // namespace updraft
