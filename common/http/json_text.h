// Writing JSON: two appenders, enough for bodies whose shape is fixed. Reading JSON is
// json_body.h's part.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace updraft {

// Appends `text` quoted and escaped. Bytes that are not UTF-8 become U+FFFD, so that the result is
// always valid JSON.
void append_json_string(std::string& out, std::string_view text);
std::string json_string(std::string_view text);

// Appends the shortest decimal that reads back as the same float; an infinity or NaN (JSON has
// none) becomes -9999.0, which is how OpenAI writes the log of zero.
void append_json_number(std::string& out, float value);
void append_json_number(std::string& out, int64_t value);

}  // namespace updraft
