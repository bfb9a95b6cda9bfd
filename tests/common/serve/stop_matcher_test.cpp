// Stop strings: the cases that hurt, then random texts against a byte-by-byte search over the whole
// text.
#include "common/serve/stop_matcher.h"

#include <doctest/doctest.h>

#include <random>
#include <string>
#include <vector>

using namespace updraft;

TEST_CASE("a stop string in three pieces is never shown, nor what follows it") {
  StopMatcher stops({"</answer>"});
  CHECK(stops.push("done</") == "done");
  CHECK(stops.push("ans") == "");
  CHECK(stops.push("wer> and more") == "");
  CHECK(stops.matched());
  CHECK(stops.push("later") == "");
  CHECK(stops.flush() == "");
}

TEST_CASE("a false start is shown as soon as it is known to be one") {
  StopMatcher stops({"</answer>"});
  CHECK(stops.push("a</an") == "a");
  CHECK(stops.push("k</") == "</ank");
  CHECK_FALSE(stops.matched());
  CHECK(stops.flush() == "</");
}

TEST_CASE("a prefix that repeats inside itself is not lost") {
  StopMatcher stops({"aab"});
  CHECK(stops.push("aaa") == "a");
  CHECK(stops.push("b") == "");
  CHECK(stops.matched());
}

TEST_CASE("the string that is complete first ends the answer") {
  StopMatcher stops({"abc", "b"});
  CHECK(stops.push("xabc") == "xa");
  CHECK(stops.matched());
  StopMatcher tie({"c", "abc"});
  CHECK(tie.push("xabc") == "x");
}

TEST_CASE("random texts in random pieces are cut where a search byte by byte cuts them") {
  std::mt19937 random(7);
  int matches = 0;
  for (int round = 0; round < 5000; ++round) {
    const auto word = [&](size_t bytes_max) {
      std::string out(1 + random() % bytes_max, 'a');
      for (char& c : out) c = static_cast<char>('a' + random() % 2);
      return out;
    };
    std::vector<std::string> strings(1 + random() % 3);
    for (std::string& stop : strings) stop = word(6);
    const std::string text = word(30);

    std::string expected = text;
    bool expected_match = false;
    for (size_t end = 1; end <= text.size() && !expected_match; ++end) {
      size_t longest = 0;
      for (const std::string& stop : strings) {
        if (std::string_view(text).substr(0, end).ends_with(stop))
          longest = std::max(longest, stop.size());
      }
      if (longest > 0) {
        expected = text.substr(0, end - longest);
        expected_match = true;
      }
    }
    // The longest match at that place may begin within text that a shorter piece had shown already:
    // not possible, since its beginning was held back.
    StopMatcher stops(strings);
    std::string shown;
    for (size_t at = 0; at < text.size();) {
      const size_t bytes = 1 + random() % 5;
      shown += stops.push(std::string_view(text).substr(at, bytes));
      at += bytes;
    }
    if (!stops.matched()) shown += stops.flush();
    CAPTURE(text);
    REQUIRE(stops.matched() == expected_match);
    REQUIRE(shown == expected);
    matches += expected_match ? 1 : 0;
  }
  CHECK(matches > 1000);
  CHECK(matches < 5000);
}
