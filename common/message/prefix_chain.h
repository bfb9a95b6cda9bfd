// Names for the beginnings of a prompt, without a tokenizer: a hash chain over the bytes of its
// messages, salted with tenant and model. Router and node compute the same chain from the same
// request, so that a node can say which beginnings it holds in its prefix cache and a router can
// see how much of a new prompt that is.
//
// The one idea: position decides where a block ends, never content, and a block's hash goes on from
// the one before it. Two prompts that share their first n bytes share the hashes of all blocks that
// end there, and (but for accidents of 64 bits, which only cost a bad guess) no others.
//
// Blocks are 512 bytes at first and grow with the depth, so that the chain of the longest prompt
// stays short: 32 blocks each of 512, 1,024, 2,048 and 4,096 bytes, 240 KiB in all; what follows
// has no name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/message/request.h"

namespace updraft {

inline constexpr size_t kPrefixBlocksMax = 128;

// Bytes of the prompt's form up to the end of block `index`, 0 .. kPrefixBlocksMax - 1.
int64_t prefix_block_end(size_t index);

// The hashes of the full blocks of the (first) prompt, from its beginning on. Never 0.
std::vector<uint64_t> prefix_chain(const Request& request);

}  // namespace updraft
