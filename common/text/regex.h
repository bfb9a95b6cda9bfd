// The one place that knows PCRE2 (UTF, Unicode properties, JIT where the system allows it). The
// tokenizers' splitters need look-ahead and \p classes, which std::regex and RE2 do not have. A
// Regex is immutable: any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace updraft {

class Regex {
 public:
  // Error: the pattern's fault with its offset.
  static Result<Regex> compile(const std::string& pattern);

  struct Match {
    bool found = false;
    size_t begin = 0;  // bytes into the subject
    size_t end = 0;
  };
  // First match at or after byte `from`. `subject` must be well-formed UTF-8 (not checked here:
  // checking again for every match would make splitting quadratic) and `from` a character's first
  // byte. The search gives up after a fixed number of steps and then answers "not found", so
  // hostile text costs bounded time.
  Match find(std::string_view subject, size_t from) const;

 private:
  struct Code;  // the compiled pattern
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace updraft
