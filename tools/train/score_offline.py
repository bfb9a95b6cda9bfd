#!/usr/bin/env python3
"""Scores an exported GGUF file on held-out conversations without any inference engine.

Reads the file back (weights dequantised to f32, tokenizer rebuilt from its metadata) and decodes
greedily in torch, so what is measured is the file that ships, not the checkpoint.

    python3 tools/train/score_offline.py configs/models/updraft-demo-cloud-q8_0.gguf --logs 200
"""

import argparse
import collections
import sys

import torch

import conversations
import gguf
from bpe import ChatTokenizer, SPECIALS
from model import Llama, Shape, greedy


def load(path):
    """(model, tokenizer, context_length) of a GGUF file written by export_gguf.py."""
    file = gguf.read(path)
    keys = file.metadata
    shape = Shape(
        vocab=keys["llama.vocab_size"], width=keys["llama.embedding_length"],
        layers=keys["llama.block_count"], heads=keys["llama.attention.head_count"],
        kv_heads=keys["llama.attention.head_count_kv"],
        head_dim=keys["llama.attention.key_length"],
        feed_forward=keys["llama.feed_forward_length"],
        rope_base=keys["llama.rope.freq_base"],
        eps=keys["llama.attention.layer_norm_rms_epsilon"])
    model = Llama(shape).eval()
    model.load_state_dict({name: torch.tensor(tensor.values).reshape(tensor.shape)
                           for name, tensor in file.tensors.items()})
    merges = [line.split(" ") for line in keys["tokenizer.ggml.merges"]]
    tokenizer = ChatTokenizer(keys["tokenizer.ggml.tokens"], merges)
    assert tokenizer.tokens[-len(SPECIALS):] == list(SPECIALS)
    return model, tokenizer, keys["llama.context_length"]


def score(model, tokenizer, context_length, task, count, seed, verbose):
    """Prints and returns the exact share of one task."""
    right, skipped = 0, 0
    kinds = collections.defaultdict(lambda: [0, 0])
    for test in conversations.held_out(task, count, seed):
        prompt = tokenizer.prompt(test.messages())
        if len(prompt) + 64 > context_length:
            skipped += 1
            continue
        answer = tokenizer.decode(greedy(model, prompt, tokenizer.end))
        kinds[test.kind][1] += 1
        if answer == test.answer:
            right += 1
            kinds[test.kind][0] += 1
        elif verbose:
            asked = test.turns[-1].user.split("\n")
            print(f"  {test.kind} ({len(prompt)} tokens): {asked[0]!r} .. {asked[-1]!r}\n"
                  f"    expected {test.answer}\n    answered {answer}")
    counted = count - skipped
    print(f"{task}: {right}/{counted} exact = {right / max(1, counted):.3f}"
          + (f" ({skipped} longer than the context)" if skipped else ""))
    print("  " + " ".join(f"{kind}={a}/{b}" for kind, (a, b) in sorted(kinds.items())), flush=True)
    return right / max(1, counted)


def main():
    parser = argparse.ArgumentParser(description="Score a GGUF file of the demo model.")
    parser.add_argument("model")
    parser.add_argument("--instructions", type=int, default=0)
    parser.add_argument("--logs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print every mismatch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer, context_length = load(options.model)
    for task, count in (("instructions", options.instructions), ("logs", options.logs)):
        if count:
            score(model, tokenizer, context_length, task, count, options.seed, options.verbose)
    return 0


if __name__ == "__main__":
    sys.exit(main())
