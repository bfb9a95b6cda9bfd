// Stop strings in a stream of text pieces: what may be shown, what must wait, where the answer
// ends. Pure; one owner. The idea: text is held back exactly as long as it could still become a
// stop string, and not a byte longer.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace updraft {

class StopMatcher {
 public:
  // None of the strings is empty.
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Text that can be shown now, in order and without gaps. After a match: what came before the stop
  // string, then nothing.
  std::string push(std::string_view text);
  // A stop string was found; it and what follows it are dropped.
  bool matched() const { return matched_; }
  // The answer ended otherwise: what was held back belongs to it after all.
  std::string flush();

 private:
  std::vector<std::string> stops_;
  std::string held_;  // a proper prefix of some stop string
  bool matched_ = false;
};

}  // namespace updraft
