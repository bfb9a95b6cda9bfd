// Fuzzes the reading of HTTP requests: the bytes arrive in pieces whose size the first byte
// chooses. What the strict layer lets through must be unambiguous, and the cut of the pieces must
// never change the outcome.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/base/check.h"
#include "common/http/client.h"
#include "common/http/request_reader.h"

using namespace updraft;

namespace {

struct Outcome {
  RequestReader::Progress last = RequestReader::Progress::kNeedMore;
  std::string body;
  int status = 0;
  bool operator==(const Outcome&) const = default;
};

Outcome run(std::string_view bytes, size_t piece_bytes) {
  HttpLimits limits;
  limits.body_bytes_max = 64 * 1024;
  RequestReader reader(limits);
  Outcome outcome;
  std::string in;
  for (size_t at = 0; at < bytes.size(); at += piece_bytes) {
    in.append(bytes.substr(at, piece_bytes));
    do {
      outcome.last = reader.read(in);
      if (outcome.last == RequestReader::Progress::kHead) {
        size_t hosts = 0, lengths = 0, encodings = 0;
        for (const auto& [name, value] : reader.head().fields) {
          hosts += name == "host" ? 1 : 0;
          lengths += name == "content-length" ? 1 : 0;
          encodings += name == "transfer-encoding" ? 1 : 0;
          UPDRAFT_CHECK(value.find_first_of("\r\n") == std::string::npos);
        }
        UPDRAFT_CHECK(hosts == 1 && lengths + encodings <= 1);
        UPDRAFT_CHECK(reader.head().path.starts_with('/'));
        host_name(reader.head().field("host"));
      }
    } while (outcome.last == RequestReader::Progress::kHead);
    UPDRAFT_CHECK(reader.body_bytes() <= limits.body_bytes_max);
    if (outcome.last == RequestReader::Progress::kFault) {
      outcome.status = reader.fault().status;
      UPDRAFT_CHECK(outcome.status >= 400 && outcome.status < 600 &&
                    !reader.fault().message.empty());
      return outcome;
    }
    if (outcome.last == RequestReader::Progress::kDone) {
      outcome.body = reader.take_body();
      return outcome;
    }
  }
  return outcome;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const size_t piece_bytes = 1 + data[0] % 64;
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const Outcome whole = run(bytes, bytes.size());
  const Outcome pieces = run(bytes, piece_bytes);
  if (whole.last == RequestReader::Progress::kDone) {
    UPDRAFT_CHECK(pieces == whole);
  }
  // A fault may be found earlier in pieces, and may then be another one, but never turn into a
  // request.
  if (whole.last == RequestReader::Progress::kFault) {
    UPDRAFT_CHECK(pieces.last != RequestReader::Progress::kDone);
  }
  (void)HttpUrl::parse(bytes.substr(0, 200));
  EventSplitter splitter;
  for (size_t at = 0; at < bytes.size(); at += piece_bytes) {
    if (!splitter.feed(bytes.substr(at, piece_bytes), [](std::string_view) { return true; })) break;
  }
  return 0;
}
