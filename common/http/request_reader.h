// Reading one HTTP request out of a byte stream: our strict checks on the head, then the HTTP
// library's parser for head and body. Knows no socket: bytes in, progress out.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/http/server.h"
#include "common/http/strict.h"

namespace updraft {

struct HttpRequestHead {
  std::string method;
  std::string path;  // without the query
  bool http_1_0 = false;
  bool keep_alive = true;
  bool expects_continue = false;                            // Expect: 100-continue
  bool has_body = false;                                    // Content-Length > 0 or chunked
  std::vector<std::pair<std::string, std::string>> fields;  // names in lower case

  // The first field of that (lower-case) name, or empty.
  std::string_view field(std::string_view name) const;
  // All fields of that name, joined by commas.
  std::string joined(std::string_view name) const;
};

class RequestReader {
 public:
  explicit RequestReader(const HttpLimits& limits);
  ~RequestReader();

  enum class Progress {
    kNeedMore,  // all of `in` is used up or is the start of something incomplete
    kHead,      // once: the head is complete, look at head(), then go on
    kDone,      // the request is complete; what is left of `in` belongs to the next one
    kFault,     // refused, see fault(); the connection cannot go on
  };

  // Takes from the front of `in` what belongs to this request.
  Progress read(std::string& in);

  const HttpRequestHead& head() const { return head_; }
  const HttpFault& fault() const { return fault_; }
  // Memory that the body takes now: a string that grows holds more than it says.
  size_t body_bytes() const;
  std::string take_body();

 private:
  struct Parser;

  Progress read_head(std::string& in);
  Progress read_body(std::string& in);
  Progress refuse(int status, std::string message);

  const HttpLimits limits_;
  HttpRequestHead head_;
  HttpFault fault_;
  size_t searched_bytes_ = 0;  // of `in`, in which the head's end is not
  std::unique_ptr<Parser> parser_;
};

}  // namespace updraft
