#include "edge/client/placed_parts.h"

#include <cstring>
#include <span>
#include <string>

#include "common/ipc/layout.h"

namespace updraft {

using namespace ipc;

namespace {

constexpr size_t kInlineBytesMax = 4096;

// A part's payload, wherever it lies.
ByteView part_bytes(const ContentPart& part) {
  return part.kind == ContentPart::Kind::kText ? as_bytes_view(part.text) : part.bytes.view();
}

ByteView part_bytes(const PromptPart& part) {
  switch (part.kind) {
    case PromptPart::Kind::kText:
      return as_bytes_view(part.text);
    case PromptPart::Kind::kIds:
      return std::as_bytes(std::span(part.ids));
    case PromptPart::Kind::kEmbeddings:
      return part.rows.bytes.view();
  }
  return {};
}

// Copies bytes into a buffer of their own when they are many. True: they were.
Result<bool> place_large(ByteView bytes, LocalClient::PlacedPart part,
                         std::vector<LocalClient::PlacedPart>& placed,
                         const AllocateBuffer& allocate) {
  if (bytes.size() <= kInlineBytesMax) return false;
  Result<LocalClient::Buffer> buffer = allocate(bytes.size());
  if (!buffer) return buffer.error();
  std::memcpy(buffer->bytes.data(), bytes.data(), bytes.size());
  part.buffer = *buffer;
  placed.push_back(part);
  return true;
}

Result<void> mark_placed(Request& request, const std::vector<LocalClient::PlacedPart>& placed) {
  for (const LocalClient::PlacedPart& part : placed) {
    bool known = false;
    if (part.target == SpanTarget::kPrompt) {
      known = part.index < request.prompts.size();
    } else if (part.target == SpanTarget::kPromptIds) {
      known = part.index < request.prompt_ids.size();
    } else if (part.target == SpanTarget::kPromptPart) {
      known = part.index < request.prompt_parts.size();
    } else {
      known = part.index < request.messages.size() &&
              part.part < request.messages[part.index].parts.size();
    }
    if (!known) {
      return fail(LocalFailure::kBadArgument,
                  "part " + std::to_string(part.part) + " of message or prompt " +
                      std::to_string(part.index) +
                      " is placed in a buffer, but the request has no such part");
    }
    if (part.target != SpanTarget::kPart) continue;
    ContentPart& target = request.messages[part.index].parts[part.part];
    if (target.kind == ContentPart::Kind::kImage) target.bytes = std::string(1, '\0');
  }
  return {};
}

}  // namespace

Result<void> place_large_parts(Request& request, std::vector<LocalClient::PlacedPart>& placed,
                               const AllocateBuffer& allocate) {
  for (uint32_t m = 0; m < request.messages.size(); ++m) {
    for (uint32_t p = 0; p < request.messages[m].parts.size(); ++p) {
      ContentPart& part = request.messages[m].parts[p];
      const Result<bool> moved = place_large(part_bytes(part), {m, p, {}}, placed, allocate);
      if (!moved) return moved.error();
      if (!*moved) continue;
      part.text.clear();
      part.bytes = {};
    }
  }
  for (uint32_t i = 0; i < request.prompts.size(); ++i) {
    const Result<bool> moved = place_large(as_bytes_view(request.prompts[i]),
                                           {i, 0, {}, SpanTarget::kPrompt}, placed, allocate);
    if (!moved) return moved.error();
    if (*moved) request.prompts[i].clear();
  }
  for (uint32_t i = 0; i < request.prompt_ids.size(); ++i) {
    const Result<bool> moved = place_large(std::as_bytes(std::span(request.prompt_ids[i])),
                                           {i, 0, {}, SpanTarget::kPromptIds}, placed, allocate);
    if (!moved) return moved.error();
    if (*moved) request.prompt_ids[i].clear();
  }
  for (uint32_t i = 0; i < request.prompt_parts.size(); ++i) {
    PromptPart& part = request.prompt_parts[i];
    const Result<bool> moved =
        place_large(part_bytes(part), {i, 0, {}, SpanTarget::kPromptPart}, placed, allocate);
    if (!moved) return moved.error();
    if (!*moved) continue;
    part.text.clear();
    part.ids.clear();
    part.rows.bytes = {};
  }
  if (placed.size() > kSpanCountMax) {
    return fail(LocalFailure::kTooLarge, "a request with " + std::to_string(placed.size()) +
                                             " large parts, allowed are " +
                                             std::to_string(kSpanCountMax));
  }
  return mark_placed(request, placed);
}

}  // namespace updraft
