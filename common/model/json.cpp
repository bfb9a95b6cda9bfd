// Recursive descent over the text; the depth is bounded, so the stack is too.
#include "common/model/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "common/base/bytes.h"
#include "common/model/mapped_file.h"

namespace updraft {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  Result<JsonValue> run() {
    const size_t valid = utf8_valid_prefix_bytes(text_);
    at_ = valid;
    if (valid != text_.size()) return failure("invalid UTF-8");
    at_ = 0;
    JsonValue value;
    skip_space();
    if (!read_value(value, 1)) return failure(error_);
    skip_space();
    if (at_ != text_.size()) return failure("unexpected text after the value");
    return value;
  }

 private:
  Error failure(const std::string& what) const {
    const std::string_view before = text_.substr(0, at_);
    const auto line = std::count(before.begin(), before.end(), '\n') + 1;
    const size_t line_begin = before.rfind('\n');  // npos + 1 == 0
    return fail("line " + std::to_string(line) + " column " +
                std::to_string(at_ - (line_begin + 1) + 1) + ": " + what);
  }

  bool refuse(std::string what) {
    error_ = std::move(what);
    return false;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool accept(char c) {
    if (peek() != c || at_ >= text_.size()) return false;
    ++at_;
    return true;
  }

  bool read_value(JsonValue& out, int depth) {
    if (at_ >= text_.size()) return refuse("ends where a value is expected");
    if (depth > kJsonDepthMax)
      return refuse("nested deeper than " + std::to_string(kJsonDepthMax) + " levels");
    if (++value_count_ > kJsonValuesMax) {
      return refuse("has more than " + std::to_string(kJsonValuesMax) + " values");
    }
    switch (peek()) {
      case '{':
        return read_object(out, depth);
      case '[':
        return read_array(out, depth);
      case '"': {
        std::string text;
        if (!read_text(text)) return false;
        out = JsonValue(std::move(text));
        return true;
      }
      case 't':
        return read_word("true", JsonValue(true), out);
      case 'f':
        return read_word("false", JsonValue(false), out);
      case 'n':
        return read_word("null", JsonValue(), out);
      default:
        return read_number(out);
    }
  }

  bool read_word(std::string_view word, JsonValue value, JsonValue& out) {
    if (text_.substr(at_, word.size()) != word) return refuse("expected a value");
    at_ += word.size();
    out = std::move(value);
    return true;
  }

  bool read_object(JsonValue& out, int depth) {
    ++at_;
    JsonValue::Object members;
    skip_space();
    while (!accept('}')) {
      if (!members.empty() && !accept(',')) return refuse("expected , or } after a member");
      skip_space();
      if (peek() != '"') return refuse("expected the name of a member in double quotes");
      JsonMember& member = members.emplace_back();
      if (!read_text(member.key)) return false;
      skip_space();
      if (!accept(':'))
        return refuse("expected : after the name \"" + printable(member.key) + "\"");
      skip_space();
      if (!read_value(member.value, depth + 1)) return false;
      skip_space();
    }
    const auto by_key = [](const JsonMember& a, const JsonMember& b) { return a.key < b.key; };
    std::sort(members.begin(), members.end(), by_key);
    const auto twice =
        std::adjacent_find(members.begin(), members.end(),
                           [](const JsonMember& a, const JsonMember& b) { return a.key == b.key; });
    if (twice != members.end())
      return refuse("the object that ends here has \"" + printable(twice->key) + "\" twice");
    out = JsonValue(std::move(members));
    return true;
  }

  bool read_array(JsonValue& out, int depth) {
    ++at_;
    JsonValue::Array elements;
    skip_space();
    while (!accept(']')) {
      if (!elements.empty() && !accept(',')) return refuse("expected , or ] after an element");
      skip_space();
      if (!read_value(elements.emplace_back(), depth + 1)) return false;
      skip_space();
    }
    out = JsonValue(std::move(elements));
    return true;
  }

  bool read_text(std::string& out) {
    ++at_;
    for (;;) {
      const size_t begin = at_;
      while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
             static_cast<uint8_t>(text_[at_]) >= 0x20) {
        ++at_;
      }
      out.append(text_.substr(begin, at_ - begin));
      if (at_ >= text_.size()) return refuse("ends inside a text");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return true;
      }
      if (c != '\\') return refuse("control character inside a text");
      if (!read_escape(out)) return false;
    }
  }

  bool read_escape(std::string& out) {
    ++at_;
    const char c = peek();
    static constexpr std::string_view kEscapes = "\"\\/bfnrt";
    static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    if (const size_t found = kEscapes.find(c);
        found != std::string_view::npos && at_ < text_.size()) {
      out.push_back(kMeanings[found]);
      ++at_;
      return true;
    }
    uint32_t unit = 0;
    if (c != 'u' || !read_hex4(unit)) return refuse("unknown escape in a text");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return refuse("\\u escape of a lone low surrogate");
    if (unit >= 0xD800 && unit <= 0xDBFF) {
      uint32_t low = 0;
      if (!accept('\\') || peek() != 'u' || !read_hex4(low) || low < 0xDC00 || low > 0xDFFF) {
        return refuse("\\u escape of a lone high surrogate");
      }
      unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, unit);
    return true;
  }

  // At the `u` of an escape: reads it and four hex digits.
  bool read_hex4(uint32_t& out) {
    if (text_.size() - at_ < 5) return false;
    const char* first = text_.data() + at_ + 1;
    const auto [end, error] = std::from_chars(first, first + 4, out, 16);
    if (error != std::errc() || end != first + 4) return false;
    at_ += 5;
    return true;
  }

  bool read_digits() {
    if (!is_digit(peek())) return false;
    while (is_digit(peek())) ++at_;
    return true;
  }

  bool read_number(JsonValue& out) {
    const size_t begin = at_;
    bool is_integer = true;
    accept('-');
    if (!accept('0') && !read_digits()) {
      at_ = begin;
      return refuse("expected a value");
    }
    if (is_digit(peek())) return refuse("number with a leading zero");
    if (accept('.')) {
      is_integer = false;
      if (!read_digits()) return refuse("number without digits after the point");
    }
    if (peek() == 'e' || peek() == 'E') {
      is_integer = false;
      ++at_;
      if (!accept('+')) accept('-');
      if (!read_digits()) return refuse("number without digits in the exponent");
    }
    const char* first = text_.data() + begin;
    const char* last = text_.data() + at_;
    if (is_integer) {
      int64_t integer = 0;
      if (std::from_chars(first, last, integer).ec == std::errc()) {
        out = JsonValue(integer);
        return true;
      }
    }
    double number = 0;
    const auto parsed = std::from_chars(first, last, number);
    if (parsed.ec != std::errc() || !std::isfinite(number)) {
      return refuse("number " + printable(text_.substr(begin, at_ - begin), 40) +
                    " is out of range");
    }
    out = JsonValue(number);
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t value_count_ = 0;
  std::string error_;
};

}  // namespace

std::optional<bool> JsonValue::boolean() const {
  const bool* value = std::get_if<bool>(&value_);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<int64_t> JsonValue::integer() const {
  const int64_t* value = std::get_if<int64_t>(&value_);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<double> JsonValue::number() const {
  if (const double* value = std::get_if<double>(&value_)) return *value;
  if (const int64_t* value = std::get_if<int64_t>(&value_)) return static_cast<double>(*value);
  return std::nullopt;
}

const JsonValue* JsonValue::find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  const auto found =
      std::lower_bound(members->begin(), members->end(), key,
                       [](const JsonMember& m, std::string_view k) { return m.key < k; });
  return found != members->end() && found->key == key ? &found->value : nullptr;
}

std::string JsonValue::describe() const {
  if (const std::string* value = text()) return "\"" + printable(*value) + "\"";
  if (const auto value = boolean()) return *value ? "true" : "false";
  if (const auto value = integer()) return std::to_string(*value);
  if (const auto value = number()) {
    char buffer[40];
    std::snprintf(buffer, sizeof buffer, "%.9g", *value);
    return buffer;
  }
  if (const Array* value = array()) return "an array of " + std::to_string(value->size());
  return object() != nullptr ? "an object" : "null";
}

Result<JsonValue> parse_json(std::string_view text) { return JsonParser(text).run(); }

Result<JsonValue> read_json_file(const std::string& path, uint64_t bytes_max) {
  const auto file = MappedFile::open(path);
  if (!file) return file.error();
  const ByteView bytes = (*file)->bytes();
  if (bytes.size() > bytes_max) {
    return fail(path + ": is " + std::to_string(bytes.size()) + " bytes long, at most " +
                std::to_string(bytes_max) + " are read");
  }
  auto value = parse_json(as_text(bytes));
  if (!value) return value.error(path);
  return value;
}

}  // namespace updraft
