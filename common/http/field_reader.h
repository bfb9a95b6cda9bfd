// Typed access to the fields of a request body: the one range table for every number a client may
// send, and a reader that checks type and range at each access and keeps the first complaint,
// naming the field and the value.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/message/request_error.h"

namespace updraft {

// The limits of one integer field; both ends are allowed.
struct IntegerRange {
  std::string_view name;
  int64_t min = 0;
  int64_t max = 0;
};
// The limits of one real field.
struct RealRange {
  std::string_view name;
  double min = 0;
  double max = 0;
  bool min_excluded = false;
  bool max_excluded = false;
};

// The table. A name that is not in it is a bug in the caller.
const IntegerRange& integer_range(std::string_view name);
const RealRange& real_range(std::string_view name);

// The first mistake found in a request.
class Complaint {
 public:
  bool any() const { return error_.has_value(); }
  const RequestError& error() const { return *error_; }
  // Kept only when it is the first.
  void invalid(const std::string& param, std::string message);
  void unsupported(const std::string& param, std::string message);

 private:
  std::optional<RequestError> error_;
};

// A value as a client wrote it, shortened, for error messages.
std::string shown(const boost::json::value& value);

// `value` as an integer within the named range; a real without fraction counts as an integer.
// Otherwise complains about `path` and returns nothing.
std::optional<int64_t> checked_integer(const boost::json::value& value, std::string_view range_name,
                                       const std::string& path, Complaint& complaint);
std::optional<double> checked_real(const boost::json::value& value, std::string_view range_name,
                                   const std::string& path, Complaint& complaint);

// Fields of one JSON object. Absent and null are the same: nothing.
class FieldReader {
 public:
  FieldReader(const boost::json::object& object, Complaint& complaint)
      : object_(object), complaint_(complaint) {}

  const boost::json::value* find(std::string_view name) const;  // nullptr: absent or null
  std::optional<int64_t> integer(std::string_view name) const;
  std::optional<double> real(std::string_view name) const;
  std::optional<bool> boolean(std::string_view name) const;
  std::optional<std::string> text(std::string_view name) const;

 private:
  const boost::json::object& object_;
  Complaint& complaint_;
};

}  // namespace updraft
