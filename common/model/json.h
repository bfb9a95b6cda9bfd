// A strict JSON reader (RFC 8259) for the files beside safetensors weights: config.json,
// tokenizer.json, the index and the tensor table itself. Standard library only, because the model
// library builds on machines that have nothing else.
//
// Refused: anything after the value, invalid UTF-8, lone surrogates, control characters, duplicate
// keys, more than kJsonDepthMax levels or kJsonValuesMax values, numbers beyond double, NaN and
// Infinity, comments, trailing commas.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/base/result.h"

namespace updraft {

inline constexpr int kJsonDepthMax = 64;
// A value takes some 20 times the memory of its shortest text. The largest published tokenizers
// have 2 million values.
inline constexpr int64_t kJsonValuesMax = 1 << 23;

struct JsonMember;

class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Object = std::vector<JsonMember>;  // sorted by key, keys differ

  JsonValue() = default;  // null
  template <typename T>
  explicit JsonValue(T value) : value_(std::move(value)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Nothing (nullptr) when the value is of another kind. integer(): a number written without
  // fraction and exponent that fits int64; number(): every number.
  std::optional<bool> boolean() const;
  std::optional<int64_t> integer() const;
  std::optional<double> number() const;
  const std::string* text() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }

  // The member of an object; nullptr when there is none or this is no object.
  const JsonValue* find(std::string_view key) const;

  // For messages: `"text"`, `12`, `true`, `null`, `an array of 3`, `an object`.
  std::string describe() const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// Errors: "line 3 column 17: ...".
Result<JsonValue> parse_json(std::string_view text);

// The whole file, at most bytes_max long; errors begin with the path.
Result<JsonValue> read_json_file(const std::string& path, uint64_t bytes_max);

}  // namespace updraft
