// The strict checks come first, on the raw head; only what passed reaches Boost.Beast's parser. The
// body is parsed by Beast alone, into a string that grows with what has arrived, not with what was
// promised.
#include "common/http/request_reader.h"

#include <algorithm>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/parser.hpp>

#include "common/base/bytes.h"

namespace updraft {
namespace {

namespace http = boost::beast::http;
using boost::beast::error_code;

// Bytes of a chunk header or trailer that may wait for their end.
constexpr size_t kChunkOverheadBytesMax = 8 * 1024;

// Like http::string_body, but a Content-Length alone takes no memory.
struct GrowingBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool is_request, class Fields>
    reader(http::header<is_request, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<uint64_t>&, error_code& ec) { ec = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, error_code& ec) {
      size_t taken = 0;
      for (const boost::asio::const_buffer buffer : boost::beast::buffers_range_ref(buffers)) {
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
        taken += buffer.size();
      }
      ec = {};
      return taken;
    }
    void finish(error_code& ec) { ec = {}; }

   private:
    value_type& body_;
  };
};

std::string to_string(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

struct RequestReader::Parser {
  http::request_parser<GrowingBody> beast;
};

std::string_view HttpRequestHead::field(std::string_view name) const {
  for (const auto& [field_name, value] : fields) {
    if (field_name == name) return value;
  }
  return {};
}

std::string HttpRequestHead::joined(std::string_view name) const {
  std::string out;
  for (const auto& [field_name, value] : fields) {
    if (field_name != name) continue;
    if (!out.empty()) out += ',';
    out += value;
  }
  return out;
}

RequestReader::RequestReader(const HttpLimits& limits) : limits_(limits) {}
RequestReader::~RequestReader() = default;

RequestReader::Progress RequestReader::refuse(int status, std::string message) {
  fault_ = {status, std::move(message)};
  return Progress::kFault;
}

RequestReader::Progress RequestReader::read(std::string& in) {
  if (!fault_.message.empty()) return Progress::kFault;
  return parser_ == nullptr ? read_head(in) : read_body(in);
}

RequestReader::Progress RequestReader::read_head(std::string& in) {
  const size_t from = searched_bytes_ > 3 ? searched_bytes_ - 3 : 0;
  const size_t end = in.find("\r\n\r\n", from);
  if (end == std::string::npos) {
    searched_bytes_ = in.size();
    if (in.size() > limits_.header_bytes_max) {
      return refuse(431, "the request's head has more than " +
                             std::to_string(limits_.header_bytes_max) + " bytes");
    }
    // A peer that speaks something else (TLS, HTTP/2, line feeds only) would otherwise wait for the
    // time-out.
    const size_t line_end = in.find('\n');
    if (line_end != std::string::npos && (line_end == 0 || in[line_end - 1] != '\r')) {
      return refuse(400, "a bare line feed in the request's head");
    }
    if (!in.empty() && (static_cast<uint8_t>(in[0]) < 0x21 || static_cast<uint8_t>(in[0]) > 0x7E)) {
      return refuse(400, "not an HTTP request: it starts with '" +
                             printable(std::string_view(in).substr(0, 8)) + "'");
    }
    return Progress::kNeedMore;
  }
  const size_t head_bytes = end + 4;
  const std::string_view raw = std::string_view(in).substr(0, head_bytes);
  if (auto fault = check_head(raw, limits_.header_bytes_max, limits_.header_count_max)) {
    return refuse(fault->status, std::move(fault->message));
  }
  parser_ = std::make_unique<Parser>();
  auto& beast = parser_->beast;
  beast.header_limit(static_cast<uint32_t>(head_bytes + 1));
  beast.body_limit(limits_.body_bytes_max);
  error_code ec;
  const size_t used = beast.put(boost::asio::buffer(raw.data(), raw.size()), ec);
  if (ec == http::error::body_limit) {
    return refuse(413,
                  "the body has more than " + std::to_string(limits_.body_bytes_max) + " bytes");
  }
  if (ec || !beast.is_header_done() || used != head_bytes) {
    return refuse(400,
                  "malformed request head: " + (ec ? ec.message() : std::string("incomplete")));
  }
  beast.eager(true);
  const auto& message = beast.get();
  head_.method = to_string(message.method_string());
  const std::string target = to_string(message.target());
  head_.path = target.substr(0, target.find('?'));
  head_.http_1_0 = message.version() == 10;
  head_.keep_alive = beast.keep_alive();
  head_.has_body = beast.chunked() || beast.content_length().value_or(0) > 0;
  for (const auto& field : message) {
    head_.fields.emplace_back(ascii_lower(to_string(field.name_string())),
                              to_string(field.value()));
  }
  const std::string expectation = ascii_lower(head_.field("expect"));
  if (!expectation.empty() && expectation != "100-continue") {
    return refuse(
        417, "only 'Expect: 100-continue' is understood, got '" + printable(expectation) + "'");
  }
  head_.expects_continue = !expectation.empty() && !head_.http_1_0;
  in.erase(0, head_bytes);
  return Progress::kHead;
}

RequestReader::Progress RequestReader::read_body(std::string& in) {
  auto& beast = parser_->beast;
  while (!beast.is_done() && !in.empty()) {
    error_code ec;
    const size_t used = beast.put(boost::asio::buffer(in.data(), in.size()), ec);
    in.erase(0, used);
    if (ec == http::error::need_more) {
      if (in.size() > kChunkOverheadBytesMax)
        return refuse(400, "a chunk header or trailer without end");
      return Progress::kNeedMore;
    }
    if (ec == http::error::body_limit) {
      return refuse(413,
                    "the body has more than " + std::to_string(limits_.body_bytes_max) + " bytes");
    }
    if (ec) return refuse(400, "malformed request body: " + ec.message());
    if (used == 0) break;
  }
  return beast.is_done() || !head_.has_body ? Progress::kDone : Progress::kNeedMore;
}

size_t RequestReader::body_bytes() const {
  return parser_ == nullptr ? 0 : parser_->beast.get().body().capacity();
}

std::string RequestReader::take_body() { return std::move(parser_->beast.get().body()); }

}  // namespace updraft
