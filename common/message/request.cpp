// Small questions about a request that several parts ask, and the making of its id.
#include "common/message/request.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>

#include "common/base/bytes.h"
#include "common/base/check.h"

namespace updraft {

// 128 random bits from the kernel: unique without coordination between entrances, and not guessable by other tenants.
RequestId new_request_id() {
  std::array<std::byte, 16> random;
  size_t filled = 0;
  while (filled < random.size()) {
    const ssize_t got = getrandom(random.data() + filled, random.size() - filled, 0);
    if (got < 0 && errno == EINTR) continue;
    UPDRAFT_CHECK(got > 0, "the kernel gave no random bytes");
    filled += static_cast<size_t>(got);
  }
  return to_hex(random);
}

const char* tier_name(Tier tier) {
  switch (tier) {
    case Tier::kAny: return "any";
    case Tier::kEdge: return "edge";
    case Tier::kCloud: return "cloud";
  }
  return "unknown";
}

const char* embedding_type_name(EmbeddingRows::Type type) {
  switch (type) {
    case EmbeddingRows::Type::kF32:
      return "f32";
    case EmbeddingRows::Type::kF16:
      return "f16";
    case EmbeddingRows::Type::kBF16:
      return "bf16";
  }
  return "unknown";
}

size_t value_bytes(EmbeddingRows::Type type) { return type == EmbeddingRows::Type::kF32 ? 4 : 2; }

int64_t embedding_bytes(const EmbeddingRows& rows) {
  return int64_t{rows.row_count} * rows.dim * static_cast<int64_t>(value_bytes(rows.type));
}

int64_t prompt_text_bytes(const Request& request) {
  int64_t bytes = 0;
  for (const ChatMessage& message : request.messages) {
    for (const ContentPart& part : message.parts) {
      if (part.kind == ContentPart::Kind::kText) bytes += static_cast<int64_t>(part.text.size());
    }
  }
  for (const std::string& prompt : request.prompts) bytes += static_cast<int64_t>(prompt.size());
  for (const PromptPart& part : request.prompt_parts)
    bytes += static_cast<int64_t>(part.text.size());
  return bytes;
}

int32_t total_choices(const Request& request) {
  if (request.kind == Request::Kind::kChat) return request.choice_count;
  const size_t prompt_count = request.prompt_parts.empty()
                                  ? std::max(request.prompts.size(), request.prompt_ids.size())
                                  : 1;
  return request.choice_count * static_cast<int32_t>(prompt_count);
}

bool has_image(const Request& request) {
  for (const ChatMessage& message : request.messages) {
    for (const ContentPart& part : message.parts) {
      if (part.kind == ContentPart::Kind::kImage) return true;
    }
  }
  return false;
}

bool has_embeddings(const Request& request) {
  return std::any_of(
      request.prompt_parts.begin(), request.prompt_parts.end(),
      [](const PromptPart& part) { return part.kind == PromptPart::Kind::kEmbeddings; });
}

}  // namespace updraft
