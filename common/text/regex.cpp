// PCRE2 behind Regex. Each thread keeps one match block; compiled patterns are shared and
// read-only.
#include "common/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>

namespace updraft {
namespace {

// Steps of one search at most. The splitters' patterns need about one step per character of a run
// of blanks, so this is reached only by single runs beyond any admitted request.
constexpr uint32_t kMatchSteps = 100'000'000;
constexpr uint32_t kHeapKib = 64 * 1024;

// What a thread needs to run searches.
struct Workspace {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);

  Workspace() {
    UPDRAFT_CHECK(match != nullptr && context != nullptr, "out of memory for a PCRE2 match block");
    pcre2_set_match_limit(context, kMatchSteps);
    pcre2_set_heap_limit(context, kHeapKib);
  }
  ~Workspace() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

Workspace& workspace() {
  static thread_local Workspace instance;
  return instance;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::compile(const std::string& pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                             PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (code->code == nullptr) {
    unsigned char text[256] = {};
    pcre2_get_error_message(error, text, sizeof text);
    return fail("pattern '" + pattern + "' at offset " + std::to_string(offset) + ": " +
                reinterpret_cast<const char*>(text));
  }
  // Refused where executable memory is forbidden (hardened services): the interpreter then does the
  // same, slower.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(code));
}

Regex::Match Regex::find(std::string_view subject, size_t from) const {
  Workspace& work = workspace();
  const auto run = [&](uint32_t options) {
    return pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(),
                       from, options | PCRE2_NO_UTF_CHECK, work.match, work.context);
  };
  int count = run(0);
  if (count == PCRE2_ERROR_JIT_STACKLIMIT)
    count = run(PCRE2_NO_JIT);  // the interpreter uses the heap
  if (count < 0) return {};
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(work.match);
  return {true, ends[0], ends[1]};
}

}  // namespace updraft
