// Reading JSON from outside: the one strict reader. UTF-8 or refused, at most 64 levels, no key
// twice, no number that does not fit a double, a bounded number of values; errors say where.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <string_view>
#include <variant>

namespace updraft {

inline constexpr size_t kJsonDepthMax = 64;
inline constexpr size_t kJsonKeyBytesMax = 1024;
inline constexpr size_t kJsonObjectKeysMax = 4096;
inline constexpr size_t kJsonValuesMax =
    1'000'000;  // a body of commas costs 24 bytes of memory per byte otherwise

struct JsonFault {
  std::string message;  // one sentence with the byte offset
  std::string where;    // the open field, "messages[2].content"; empty: not known
};

std::variant<boost::json::value, JsonFault> parse_strict_json(std::string_view text);

}  // namespace updraft
