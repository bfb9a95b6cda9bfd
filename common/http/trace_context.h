// W3C Trace Context (https://www.w3.org/TR/trace-context/): the traceparent header, checked.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace updraft {

// A traceparent in the form of version 00, "00-<32 hex>-<16 hex>-<2 hex>"; a later version's first
// four fields are read as that standard demands. Nothing when it is malformed (such a header is
// ignored): upper case, an id of zeros, version ff.
std::optional<std::string> read_traceparent(std::string_view header);

}  // namespace updraft
