// See the header.
#include "common/http/json_body.h"

#include <utility>

namespace updraft {

std::variant<boost::json::value, RequestError> read_json(std::string_view text) {
  auto parsed = parse_strict_json(text);
  if (auto* value = std::get_if<boost::json::value>(&parsed)) return std::move(*value);
  JsonFault& fault = std::get<JsonFault>(parsed);
  RequestError error = error_of(ErrorCode::kInvalidRequest, std::move(fault.message));
  if (error.message.starts_with("not UTF-8")) error.message.insert(0, "the body is ");
  error.param = std::move(fault.where);
  return error;
}

}  // namespace updraft
