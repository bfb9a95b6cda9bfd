// Pre-tokenization of byte-level BPE: text to the pieces inside which merges may happen. A splitter
// is a list of patterns; each re-splits every piece of the one before, and what no match covers is
// a piece too. Immutable: any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"
#include "common/text/regex.h"

namespace updraft {

// What goes with a splitter in the files that name it (tokenizer.ggml.pre).
struct SplitterDefaults {
  bool ignore_merges = false;  // a piece that is a token is that token, whatever the merges say
  bool add_bos = false;
};

class Splitter {
 public:
  // Error: `name` is not known; lists the known names.
  static Result<Splitter> by_name(std::string_view name);

  // Appends the pieces of `text` in order; together they are `text`, none is empty. Bytes that are
  // not UTF-8 match no pattern, so each run of them is part of what is left between the matches.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

  const SplitterDefaults& defaults() const { return defaults_; }

 private:
  Splitter() = default;
  void split_stage(size_t stage, std::string_view text,
                   std::vector<std::string_view>& pieces) const;

  std::vector<Regex> stages_;
  SplitterDefaults defaults_;
};

// Every name that Splitter::by_name knows, comma separated, for messages.
std::string known_splitters();

}  // namespace updraft
