// See the header.
#include "common/message/memory_refusal.h"

namespace updraft {
namespace {

// Answers that run free memory when they end, which takes seconds; the fuller, the more must end.
constexpr int32_t kShedRetryMs = 2000;
constexpr int32_t kRefuseRetryMs = 5000;

}  // namespace

std::optional<RequestError> memory_refusal(MemoryLevel level, Priority priority) {
  if (level == MemoryLevel::kRefuse) {
    return error_of(ErrorCode::kOverloaded,
                    "memory is almost full here, no new request is taken until some is free",
                    kRefuseRetryMs);
  }
  if (level == MemoryLevel::kShed && priority > Priority::kInteractive) {
    return error_of(ErrorCode::kOverloaded,
                    "memory is short here, only interactive requests are taken until some is free",
                    kShedRetryMs);
  }
  return std::nullopt;
}

}  // namespace updraft
