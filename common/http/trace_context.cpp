// See the header.
#include "common/http/trace_context.h"

#include <algorithm>
#include <vector>

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

constexpr size_t kMembersMax = 32;
constexpr size_t kLongMemberBytes = 128;
constexpr size_t kStateBytesMax = 512;

bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// "vendor" or "tenant@vendor", of a-z, 0-9, _, -, * and /.
bool is_state_key(std::string_view key) {
  const auto is_name = [](std::string_view name, size_t bytes_max, bool digit_first) {
    return !name.empty() && name.size() <= bytes_max &&
           (is_lower(name[0]) || (digit_first && is_digit(name[0]))) &&
           std::all_of(name.begin(), name.end(), [](char c) {
             return is_lower(c) || is_digit(c) || c == '_' || c == '-' || c == '*' || c == '/';
           });
  };
  const size_t at = key.find('@');
  if (at == std::string_view::npos) return is_name(key, 256, false);
  return is_name(key.substr(0, at), 241, true) && is_name(key.substr(at + 1), 14, false);
}

bool is_state_value(std::string_view value) {
  return !value.empty() && value.size() <= 256 && value.back() != ' ' &&
         std::all_of(value.begin(), value.end(),
                     [](char c) { return c >= ' ' && c <= '~' && c != ',' && c != '='; });
}

std::string_view trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

std::string read_tracestate(std::string_view header) {
  std::vector<std::string_view> members;
  std::vector<std::string_view> keys;
  while (!header.empty()) {
    const size_t comma = std::min(header.find(','), header.size());
    const std::string_view member = trimmed(header.substr(0, comma));
    header.remove_prefix(std::min(comma + 1, header.size()));
    if (member.empty()) continue;  // allowed
    const size_t equals = std::min(member.find('='), member.size());
    const std::string_view key = member.substr(0, equals);
    if (equals == member.size() || !is_state_key(key) || !is_state_value(member.substr(equals + 1)))
      return {};
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) return {};
    if (members.size() == kMembersMax) return {};
    keys.push_back(key);
    members.push_back(member);
  }
  const auto bytes = [&] {
    size_t sum = members.empty() ? 0 : members.size() - 1;
    for (const std::string_view member : members) sum += member.size();
    return sum;
  };
  if (bytes() > kStateBytesMax) {
    std::erase_if(members, [](std::string_view m) { return m.size() > kLongMemberBytes; });
    while (bytes() > kStateBytesMax) members.pop_back();
  }
  std::string out;
  for (const std::string_view member : members) {
    if (!out.empty()) out += ',';
    out += member;
  }
  return out;
}

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
