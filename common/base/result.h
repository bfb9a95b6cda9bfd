// Result<T>: the answer of an operation on which the world may fail (files, sockets, shared memory,
// devices). Holds either a value or an Error whose message says what failed, where, and with which
// value. A caller's mistake has a typed answer of its own (message/request_error.h), a bug in this
// program aborts (check.h).
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "common/base/check.h"

namespace updraft {

struct Error {
  std::string message;
  int kind = 0;  // for callers that must tell failures apart: a value of the enum that the function
                 // names; 0: nothing to tell
};

// `return fail("model.gguf: ...")` from a function that returns any Result.
[[nodiscard]] inline Error fail(std::string message) { return Error{std::move(message)}; }
template <typename Kind>
[[nodiscard]] Error fail(Kind kind, std::string message) {
  return Error{std::move(message), static_cast<int>(kind)};
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: implicit on purpose

  explicit operator bool() const { return value_.has_value(); }
  bool ok() const { return value_.has_value(); }

  T& value() & {
    UPDRAFT_CHECK(value_.has_value(), "value() of a failed Result");
    return *value_;
  }
  const T& value() const& {
    UPDRAFT_CHECK(value_.has_value(), "value() of a failed Result");
    return *value_;
  }
  T&& value() && {
    UPDRAFT_CHECK(value_.has_value(), "value() of a failed Result");
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // The message of the failure; empty when ok.
  const std::string& message() const { return error_.message; }
  int kind() const { return error_.kind; }
  // The failure to hand to one's own caller: `if (!r) return r.error();`
  Error error() const { return error_; }
  // The same with the place in front: "configs/edge.toml: ...".
  Error error(const std::string& where) const {
    return Error{where + ": " + error_.message, error_.kind};
  }

 private:
  std::optional<T> value_;
  Error error_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : failed_(true), error_(std::move(error)) {}  // NOLINT

  explicit operator bool() const { return !failed_; }
  bool ok() const { return !failed_; }
  const std::string& message() const { return error_.message; }
  int kind() const { return error_.kind; }
  Error error() const { return error_; }
  Error error(const std::string& where) const {
    return Error{where + ": " + error_.message, error_.kind};
  }

 private:
  bool failed_ = false;
  Error error_;
};

}  // namespace updraft
