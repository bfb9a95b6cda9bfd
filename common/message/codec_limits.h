// Limits of the pool's messages that both halves of the codec respect. Private to codec.cpp and
// codec_encode.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/message/request_check.h"

namespace updraft::codec {

inline constexpr uint32_t kDepthMax = 16;
inline constexpr uint32_t kTablesMax =
    16384;  // 1,024 messages with 4,096 parts, and the tables around them
inline constexpr size_t kShortBytes = 256;  // names of things: nodes, models, devices
inline constexpr size_t kErrorBytes = 4096;
inline constexpr size_t kModelsMax = 256;
inline constexpr size_t kTopLogprobs = RequestLimits::kTopLogprobs;
inline constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();
inline constexpr int64_t kTokensMax = int64_t{1} << 40;  // any count of tokens
inline constexpr int64_t kBytesMax = int64_t{1} << 50;
inline constexpr int64_t kTimeMax = int64_t{1} << 62;
inline constexpr int32_t kSequencesMax = 1 << 20;  // of one node
inline constexpr uint64_t kSlotsCountedMax = uint64_t{1} << 62;
inline constexpr int32_t kCreditMsMax = 60'000;
inline constexpr int32_t kDayMs = 24 * 3600 * 1000;
inline constexpr int32_t kContextMax = 1 << 26;
inline constexpr int32_t kChoicesMax =
    RequestLimits::kChoices * static_cast<int32_t>(RequestLimits::kPrompts);

}  // namespace updraft::codec
