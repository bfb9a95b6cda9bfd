// Answers that are given twice: whole, in order, from whichever thread, and forgotten within
// limits.
#include "edge/local_answer.h"

#include <doctest/doctest.h>

#include <thread>

using namespace updraft;

namespace {

TokenChunk chunk_of(int32_t offset, size_t bytes = 10) {
  TokenChunk chunk;
  chunk.offset = offset;
  chunk.ids = {offset};
  chunk.text = std::string(bytes, 'x');
  return chunk;
}

// The offsets of the chunks, -1 for an end.
LocalAnswer::Deliver into(std::vector<int32_t>& out) {
  return [&out](Event event) {
    if (const auto* chunk = std::get_if<TokenChunk>(&event)) out.push_back(chunk->offset);
    if (is_end(event)) out.push_back(-1);
  };
}

std::shared_ptr<LocalAnswer> ended_answer(size_t bytes) {
  auto answer = std::make_shared<LocalAnswer>("id");
  answer->take(chunk_of(0, bytes));
  answer->take(Finished{});
  return answer;
}

}  // namespace

TEST_CASE("an answer given again comes whole, goes on there, and no longer here") {
  LocalAnswer answer("id");
  std::vector<int32_t> first, second, third;
  CHECK(answer.attach(into(first)));
  answer.take(chunk_of(0));
  answer.take(chunk_of(1));
  CHECK(answer.attach(into(second)));
  answer.take(chunk_of(2));
  CHECK_FALSE(answer.ended());
  answer.take(Finished{});
  CHECK(answer.ended());
  CHECK(first == std::vector<int32_t>{0, 1});
  CHECK(second == std::vector<int32_t>{0, 1, 2, -1});
  CHECK(answer.attach(into(third)));
  CHECK(third == second);
}

TEST_CASE("an answer that moves while its events come loses and doubles none") {
  for (int round = 0; round < 50; ++round) {
    LocalAnswer answer("id");
    std::vector<int32_t> first, second;
    CHECK(answer.attach(into(first)));
    std::thread service([&] {
      for (int32_t i = 0; i < 200; ++i) answer.take(chunk_of(i));
      answer.take(Finished{});
    });
    CHECK(answer.attach(into(second)));
    service.join();
    REQUIRE(second.size() == 201);
    for (int32_t i = 0; i < 200; ++i) REQUIRE(second[static_cast<size_t>(i)] == i);
  }
}

TEST_CASE("an answer that is too long to be kept is passed on but not given again") {
  LocalAnswer answer("id");
  std::vector<int32_t> first, second;
  CHECK(answer.attach(into(first)));
  for (int32_t i = 0; i < 3; ++i) answer.take(chunk_of(i, LocalAnswer::kKeptBytesMax / 2));
  answer.take(Finished{});
  CHECK(first == std::vector<int32_t>{0, 1, 2, -1});
  CHECK_FALSE(answer.attach(into(second)));
  CHECK(second.empty());
  CHECK(answer.kept_bytes() < 4096);
}

TEST_CASE("answers are found by user and id, and the oldest that ended make room") {
  LocalAnswers answers;
  const auto running = std::make_shared<LocalAnswer>("running");
  answers.add(7, "first", running, 0);
  CHECK(answers.find(7, "first") == running);
  CHECK(answers.find(8, "first") == nullptr);
  CHECK(answers.find(7, "other") == nullptr);
  for (size_t i = 0; i < 2 * LocalAnswers::kAnswersMax; ++i)
    answers.add(7, std::to_string(i), ended_answer(10), 1);
  CHECK(answers.count() <= LocalAnswers::kAnswersMax);
  CHECK(answers.find(7, "first") == running);
  CHECK(answers.find(7, "0") == nullptr);
  CHECK(answers.find(7, std::to_string(2 * LocalAnswers::kAnswersMax - 1)) != nullptr);
  // By bytes ...
  LocalAnswers large;
  for (int i = 0; i < 100; ++i) large.add(7, std::to_string(i), ended_answer(200'000), 1);
  CHECK(large.count() <= LocalAnswers::kBytesMax / 200'000 + 1);
  CHECK(large.count() >= LocalAnswers::kBytesMax / 200'000 - 1);
  // ... and by age.
  answers.add(7, "new", ended_answer(10), LocalAnswers::kKeptNs + 2);
  CHECK(answers.count() == 2);
  CHECK(answers.find(7, "first") == running);
}
