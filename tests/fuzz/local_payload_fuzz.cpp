// What a hostile client says of a request's payload: a request as it comes off the wire, spans that
// name any bytes as any of its parts, and the bytes themselves. Whatever they say, the request is
// refused or every row that it has can be copied, and the copy is finite.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "common/engine/input_rows.h"
#include "common/ipc/layout.h"
#include "common/ipc/segment.h"
#include "common/message/request_check.h"
#include "edge/local_memory.h"
#include "edge/local_payload.h"

namespace {

using namespace updraft;

// The client's segment, and the daemon's map of it.
struct Mapped {
  std::unique_ptr<ipc::Segment> segment;
  LocalMemory memory{
      {1 << 30, 1 << 30, 0}, std::make_shared<MappedUse>(), std::make_shared<MappedUse>()};
  Mapped() {
    auto made = ipc::Segment::create({});
    if (!made) std::abort();
    segment = std::move(*made);
    if (!memory.adopt_own(ipc::UniqueFd(dup(segment->fd())))) std::abort();
  }
};

// One part of each kind; the rows say of themselves what the input says.
Request request_of(const uint8_t* head) {
  Request request;
  request.id = "f";
  request.kind = Request::Kind::kCompletion;
  request.prompt_parts.resize(4);
  request.prompt_parts[1].kind = PromptPart::Kind::kIds;
  for (size_t i = 2; i < 4; ++i) {
    PromptPart& part = request.prompt_parts[i];
    part.kind = PromptPart::Kind::kEmbeddings;
    part.rows.type = static_cast<EmbeddingRows::Type>(head[0] % 3);
    part.rows.row_count = static_cast<int8_t>(head[1]) * (head[2] == 0 ? 1 << 24 : 1);
    part.rows.dim = static_cast<int8_t>(head[3]);
    head += 4;
  }
  return request;
}

void copy_all(const Request& request) {
  std::vector<float> out;
  for (const PromptPart& part : request.prompt_parts) {
    if (part.rows.bytes.empty()) continue;
    out.assign(static_cast<size_t>(part.rows.row_count) * static_cast<size_t>(part.rows.dim), 1);
    (void)copy_rows(part.rows, 0, part.rows.row_count, out);
    for (const float value : out) {
      if (!(value - value == 0.0F)) std::abort();
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHeadBytes = 8;
  static Mapped mapped;
  if (size < kHeadBytes) return 0;
  Request request = request_of(data);
  data += kHeadBytes;
  size -= kHeadBytes;
  const uint64_t first = mapped.segment->header().payload_offset;
  for (; size >= sizeof(ipc::PartSpan);
       data += sizeof(ipc::PartSpan), size -= sizeof(ipc::PartSpan)) {
    // The bytes that the span names are the input's own, also while it is placed.
    std::memcpy(mapped.segment->payload().data(), data, size);
    ipc::PartSpan span;
    std::memcpy(&span, data, sizeof span);
    // Half of them close to where something is.
    if (span.offset % 2 == 0) span.offset = first + span.offset / 2 % 256;
    if (span.bytes % 2 == 0) span.bytes = span.bytes / 2 % 4096;
    if (span.segment % 2 == 0) span.segment = 0;
    span.index %= 8;
    if (place_span(request, span, mapped.memory)) return 0;
  }
  if (!check_request(request)) copy_all(request);
  return 0;
}
