// The range table and the typed reader over it.
#include "common/http/field_reader.h"

#include <array>
#include <boost/json/serialize.hpp>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/check.h"

namespace updraft {
namespace {

constexpr int64_t kTokenIdMax = std::numeric_limits<int32_t>::max();

// OpenAI's ranges where OpenAI has the field, vLLM's and llama.cpp's otherwise, cut to what
// message/request.h can hold.
constexpr std::array kIntegerRanges = {
    IntegerRange{"max_tokens", 1, 1 << 24},
    IntegerRange{"max_completion_tokens", 1, 1 << 24},
    IntegerRange{"n", 1, 8},
    IntegerRange{"best_of", 1, 8},
    IntegerRange{"seed", 0, std::numeric_limits<int64_t>::max()},
    IntegerRange{"top_k", -1, 1 << 20},  // -1 and 0: off
    IntegerRange{"top_logprobs", 0, 20},
    IntegerRange{"logprobs", 0, 20},  // of completions; chat has a boolean
    IntegerRange{"min_tokens", 0, 1 << 24},
    IntegerRange{"prompt", 0, kTokenIdMax},  // token ids
    IntegerRange{"logit_bias key", 0, kTokenIdMax},
    IntegerRange{"x-updraft-deadline-ms", 1, 24 * 3600 * 1000},
    IntegerRange{"grace_ms", 0, 3600 * 1000},  // of a drain
};

constexpr std::array kRealRanges = {
    RealRange{"temperature", 0, 2},        RealRange{"top_p", 0, 1, true, false},
    RealRange{"min_p", 0, 1, false, true}, RealRange{"repetition_penalty", 0, 100, true, false},
    RealRange{"frequency_penalty", -2, 2}, RealRange{"presence_penalty", -2, 2},
    RealRange{"logit_bias", -100, 100},
};

template <typename Table>
const auto& entry_of(const Table& table, std::string_view name) {
  for (const auto& entry : table) {
    if (entry.name == name) return entry;
  }
  UPDRAFT_CHECK(false, "a number field without an entry in the range table");
  return table[0];
}

std::string plain(double value) {
  char digits[32];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value);
  return {digits, end.ptr};
}

std::string range_text(const RealRange& range) {
  return std::string(range.min_excluded ? "greater than " : "at least ") + plain(range.min) +
         " and " + (range.max_excluded ? "less than " : "at most ") + plain(range.max);
}

RequestError request_error(ErrorCode code, const std::string& param, std::string message) {
  RequestError error;
  error.code = code;
  error.message = std::move(message);
  error.param = param;
  return error;
}

// The exact integer in a JSON number, if it is one that fits.
std::optional<int64_t> exact_integer(const boost::json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double()) {
    const double real = value.get_double();
    if (std::abs(real) <= 9007199254740992.0 && std::trunc(real) == real)
      return static_cast<int64_t>(real);
  }
  return std::nullopt;
}

}  // namespace

const IntegerRange& integer_range(std::string_view name) { return entry_of(kIntegerRanges, name); }
const RealRange& real_range(std::string_view name) { return entry_of(kRealRanges, name); }

void Complaint::invalid(const std::string& param, std::string message) {
  if (!error_) error_ = request_error(ErrorCode::kInvalidRequest, param, std::move(message));
}
void Complaint::unsupported(const std::string& param, std::string message) {
  if (!error_) error_ = request_error(ErrorCode::kUnsupported, param, std::move(message));
}

std::string shown(const boost::json::value& value) {
  if (value.is_double()) return plain(value.get_double());
  if (value.is_string()) {
    return "\"" +
           printable(std::string_view(value.get_string().data(), value.get_string().size()), 60) +
           "\"";
  }
  if (value.is_array()) return "an array of " + std::to_string(value.get_array().size());
  if (value.is_object()) return "an object";
  return printable(boost::json::serialize(value), 60);
}

std::optional<int64_t> checked_integer(const boost::json::value& value, std::string_view range_name,
                                       const std::string& path, Complaint& complaint) {
  const IntegerRange& range = integer_range(range_name);
  const auto integer = exact_integer(value);
  if (!integer || *integer < range.min || *integer > range.max) {
    complaint.invalid(path, "'" + path + "' must be an integer from " + std::to_string(range.min) +
                                " to " + std::to_string(range.max) + ", got " + shown(value));
    return std::nullopt;
  }
  return integer;
}

std::optional<double> checked_real(const boost::json::value& value, std::string_view range_name,
                                   const std::string& path, Complaint& complaint) {
  const RealRange& range = real_range(range_name);
  if (value.is_number()) {
    const double real = value.to_number<double>();
    const bool above = range.min_excluded ? real > range.min : real >= range.min;
    const bool below = range.max_excluded ? real < range.max : real <= range.max;
    if (above && below) return real;
  }
  complaint.invalid(
      path, "'" + path + "' must be a number " + range_text(range) + ", got " + shown(value));
  return std::nullopt;
}

const boost::json::value* FieldReader::find(std::string_view name) const {
  const auto* value = object_.if_contains(boost::json::string_view(name.data(), name.size()));
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::optional<int64_t> FieldReader::integer(std::string_view name) const {
  const auto* value = find(name);
  if (value == nullptr) return std::nullopt;
  return checked_integer(*value, name, std::string(name), complaint_);
}

std::optional<double> FieldReader::real(std::string_view name) const {
  const auto* value = find(name);
  if (value == nullptr) return std::nullopt;
  return checked_real(*value, name, std::string(name), complaint_);
}

std::optional<bool> FieldReader::boolean(std::string_view name) const {
  const auto* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_bool()) {
    complaint_.invalid(std::string(name),
                       "'" + std::string(name) + "' must be true or false, got " + shown(*value));
    return std::nullopt;
  }
  return value->get_bool();
}

std::optional<std::string> FieldReader::text(std::string_view name) const {
  const auto* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    complaint_.invalid(std::string(name),
                       "'" + std::string(name) + "' must be a string, got " + shown(*value));
    return std::nullopt;
  }
  return std::string(value->get_string().data(), value->get_string().size());
}

}  // namespace updraft
