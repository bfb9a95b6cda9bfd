// What is asked and what must come back: tokens as a function of the request, so that a token that
// is doubled, lost, torn or taken from another run shows at the client.
//
// A request without a seed may be answered differently each time; then every generation (one run on
// one node) has a mark of its own in its token ids, and a stream put together from two of them
// shows, too.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/message/request.h"

namespace updraft::sim {

struct SimModel {
  std::string id;
  std::string digest;
  int32_t bytes_per_token = 4;      // of prompt text, exactly
  int32_t answer_tokens_mean = 16;  // of answers that end by themselves
};

// Of everything that the answer depends on.
uint64_t content_hash(const Request& request);
// The prompt as this model's tokenizer sees it. Equal beginnings of texts give equal beginnings of
// ids.
std::vector<int32_t> tokenize(const Request& request, const SimModel& model);
int32_t count_tokens(const Request& request, const SimModel& model);

// Tokens of a choice that ends by itself, 1 to twice the mean. A request that ignores the end has
// none: it goes on to its limit.
int32_t natural_tokens(uint64_t content, int32_t choice, const SimModel& model);

inline constexpr int32_t kGenerations = 256;  // marks; 0 is that of requests with a seed
// generation: the mark of the run, below kGenerations.
int32_t token_at(uint64_t content, int32_t choice, int32_t index, int32_t generation);
inline int32_t generation_of(int32_t token) { return token % kGenerations; }
std::string piece_of(int32_t token);

}  // namespace updraft::sim
