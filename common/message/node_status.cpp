// See the header.
#include "common/message/node_status.h"

#include <algorithm>

namespace updraft {

bool is_node_id(std::string_view id) {
  return !id.empty() && id.size() <= kNodeIdBytesMax &&
         std::all_of(id.begin(), id.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
         });
}

}  // namespace updraft
