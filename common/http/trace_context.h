// W3C Trace Context (https://www.w3.org/TR/trace-context/): the traceparent and tracestate
// headers, checked.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace updraft {

// A traceparent in the form of version 00, "00-<32 hex>-<16 hex>-<2 hex>"; a later version's first
// four fields are read as that standard demands. Nothing when it is malformed (such a header is
// ignored): upper case, an id of zeros, version ff.
std::optional<std::string> read_traceparent(std::string_view header);

// A tracestate, the fields of that name joined by commas: its members "key=value" in their order,
// joined by commas. Empty when one of them is malformed, a key comes twice or there are more than
// 32 (the whole is ignored then). Longer than 512 bytes it is cut by whole members as that standard
// says: first those of more than 128 bytes, then from the end.
std::string read_tracestate(std::string_view header);

}  // namespace updraft
