// The strict reader over Boost.JSON's event parser: the library tokenises and builds the document,
// the handler in between enforces what the library leaves open (duplicate keys, infinities, the
// number of values).
#include "common/json/json_reader.h"

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/value_stack.hpp>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "common/base/bytes.h"

namespace updraft {
namespace {

namespace json = boost::json;
using json::error_code;
using json::string_view;

// Receives the parser's events; every method returns false after setting ec to stop the parse.
struct Handler {
  static constexpr size_t max_object_size = kJsonObjectKeysMax;
  static constexpr size_t max_array_size = kJsonValuesMax;
  static constexpr size_t max_key_size = kJsonKeyBytesMax;
  static constexpr size_t max_string_size = json::string::max_size();

  // An open container: for objects the keys so far, the last of which names where we are.
  struct Level {
    bool is_object = false;
    std::set<std::string, std::less<>> keys;
    std::string last_key;
    size_t index = 0;  // in arrays: of the value being read
  };

  json::value_stack values;
  std::vector<Level> levels;
  std::string key_start;  // first part of a key that came in parts
  std::string number_start;
  size_t value_count = 0;
  std::string complaint;  // why we stopped the parse; empty: the parser itself did

  bool stop(error_code& ec, std::string why) {
    complaint = std::move(why);
    ec = json::error::exception;
    return false;
  }

  bool count_value(error_code& ec) {
    if (++value_count > kJsonValuesMax) {
      return stop(ec, "more than " + std::to_string(kJsonValuesMax) + " values");
    }
    return true;
  }
  // A value is complete: the next one in the same array has the next index.
  void value_done() {
    if (!levels.empty()) ++levels.back().index;
  }

  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }

  bool on_object_begin(error_code& ec) {
    levels.emplace_back().is_object = true;
    return count_value(ec);
  }
  bool on_object_end(size_t n, error_code&) {
    values.push_object(n);
    levels.pop_back();
    value_done();
    return true;
  }
  bool on_array_begin(error_code& ec) {
    levels.emplace_back();
    return count_value(ec);
  }
  bool on_array_end(size_t n, error_code&) {
    values.push_array(n);
    levels.pop_back();
    value_done();
    return true;
  }

  bool on_key_part(string_view part, size_t, error_code&) {
    key_start.append(part.data(), part.size());
    values.push_chars(part);
    return true;
  }
  bool on_key(string_view rest, size_t, error_code& ec) {
    values.push_key(rest);
    key_start.append(rest.data(), rest.size());
    Level& level = levels.back();
    level.last_key = std::exchange(key_start, {});
    if (!level.keys.insert(level.last_key).second) return stop(ec, "the key is there twice");
    return true;
  }

  bool on_string_part(string_view part, size_t, error_code&) {
    values.push_chars(part);
    return true;
  }
  bool on_string(string_view rest, size_t, error_code& ec) {
    values.push_string(rest);
    value_done();
    return count_value(ec);
  }

  bool on_number_part(string_view part, error_code&) {
    number_start.append(part.data(), part.size());
    return true;
  }
  bool on_int64(int64_t number, string_view, error_code& ec) {
    number_start.clear();
    values.push_int64(number);
    value_done();
    return count_value(ec);
  }
  bool on_uint64(uint64_t number, string_view, error_code& ec) {
    number_start.clear();
    values.push_uint64(number);
    value_done();
    return count_value(ec);
  }
  bool on_double(double number, string_view rest, error_code& ec) {
    number_start.append(rest.data(), rest.size());
    if (!std::isfinite(number)) {
      return stop(ec, "the number " + printable(number_start, 40) + " is out of range");
    }
    number_start.clear();
    values.push_double(number);
    value_done();
    return count_value(ec);
  }
  bool on_bool(bool value, error_code& ec) {
    values.push_bool(value);
    value_done();
    return count_value(ec);
  }
  bool on_null(error_code& ec) {
    values.push_null();
    value_done();
    return count_value(ec);
  }
  bool on_comment_part(string_view, error_code&) { return true; }
  bool on_comment(string_view, error_code&) { return true; }

  // "messages[2].content", as far as known.
  std::string where() const {
    std::string path;
    for (const Level& level : levels) {
      if (path.size() > 200) break;
      if (level.is_object) {
        if (level.last_key.empty()) break;
        if (!path.empty()) path += '.';
        path += printable(level.last_key, 60);
      } else {
        path += '[' + std::to_string(level.index) + ']';
      }
    }
    return path;
  }
};

std::string reason_of(error_code ec, const Handler& handler) {
  if (!handler.complaint.empty()) return handler.complaint;
  if (ec == json::error::too_deep) return "more than " + std::to_string(kJsonDepthMax) + " levels";
  if (ec == json::error::object_too_large) {
    return "an object with more than " + std::to_string(kJsonObjectKeysMax) + " keys";
  }
  if (ec == json::error::array_too_large) {
    return "an array with more than " + std::to_string(kJsonValuesMax) + " values";
  }
  if (ec == json::error::key_too_large) {
    return "a key of more than " + std::to_string(kJsonKeyBytesMax) + " bytes";
  }
  if (ec == json::error::exponent_overflow) return "a number out of range";
  if (ec == json::error::incomplete) return "the text ends in the middle";
  if (ec == json::error::extra_data) return "text after the end of the document";
  return ec.message();
}

}  // namespace

std::variant<json::value, JsonFault> parse_strict_json(std::string_view text) {
  const size_t valid_bytes = utf8_valid_prefix_bytes(text);
  if (valid_bytes != text.size()) {
    return JsonFault{"not UTF-8 at byte " + std::to_string(valid_bytes) + ": '" +
                         printable(text.substr(valid_bytes, 4)) + "'",
                     ""};
  }
  json::parse_options options;
  options.max_depth = kJsonDepthMax;
  json::basic_parser<Handler> parser(options);
  parser.handler().values.reset();
  error_code ec;
  const size_t parsed_bytes = parser.write_some(false, text.data(), text.size(), ec);
  if (!ec && parsed_bytes < text.size()) ec = json::error::extra_data;
  if (ec) {
    const std::string where = parser.handler().where();
    // Where a value is wrong, the parser stops inside or behind it: show from the start of the
    // value.
    size_t shown = std::min(parsed_bytes, text.size());
    while (shown > 0 && parsed_bytes - shown < 24 &&
           std::string_view(":,[{ \n\r\t").find(text[shown - 1]) == std::string_view::npos) {
      --shown;
    }
    return JsonFault{
        "invalid JSON at byte " + std::to_string(parsed_bytes) +
            (where.empty() ? "" : " (" + where + ")") + ": " + reason_of(ec, parser.handler()) +
            (parsed_bytes < text.size() ? ", near '" + printable(text.substr(shown, 24)) + "'"
                                        : ""),
        where};
  }
  return parser.handler().values.release();
}

}  // namespace updraft
