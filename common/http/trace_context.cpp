// See the header.
#include "common/http/trace_context.h"

#include <algorithm>

namespace updraft {
namespace {

constexpr size_t kVersion00Bytes = 55;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

std::optional<std::string> read_traceparent(std::string_view header) {
  if (header.size() < kVersion00Bytes) return std::nullopt;
  const std::string_view version = header.substr(0, 2);
  const std::string_view trace_id = header.substr(3, 32);
  const std::string_view parent_id = header.substr(36, 16);
  const std::string_view flags = header.substr(53, 2);
  if (header[2] != '-' || header[35] != '-' || header[52] != '-') return std::nullopt;
  if (!is_hex(version) || !is_hex(trace_id) || !is_hex(parent_id) || !is_hex(flags))
    return std::nullopt;
  if (version == "ff" || is_zero(trace_id) || is_zero(parent_id)) return std::nullopt;
  if (header.size() > kVersion00Bytes && (version == "00" || header[kVersion00Bytes] != '-'))
    return std::nullopt;
  return "00-" + std::string(trace_id) + '-' + std::string(parent_id) + '-' + std::string(flags);
}

}  // namespace updraft
