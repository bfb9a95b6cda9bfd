// A request's body as JSON, or the client's mistake in it.
#pragma once

#include <string_view>
#include <variant>

#include "common/json/json_reader.h"
#include "common/message/request_error.h"

namespace updraft {

// The document, or kInvalidRequest with the byte offset and, where one is open, the field.
std::variant<boost::json::value, RequestError> read_json(std::string_view text);

}  // namespace updraft
