#!/usr/bin/env python3
"""Writes a training run as the two GGUF files of the demo model.

Q4_0 for the edge (context 512) from the end of the run, where the weights have learned to be
Q4_0; Q8_0 for the cloud (context 4096) from the phase before, whose weights were free of that and
look things up in long logs more surely.

    python3 tools/train/export_gguf.py --run build/train --out configs/models
"""

import argparse
import sys
from pathlib import Path

import torch

import gguf
from bpe import PRE, ChatTokenizer, END_OF_TEXT, IM_END, SPECIALS

EDGE_NAME, CLOUD_NAME = "updraft-demo-edge-q4_0.gguf", "updraft-demo-cloud-q8_0.gguf"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
FILE_TYPES = {gguf.F32: 0, gguf.Q4_0: 2, gguf.Q8_0: 7}  # general.file_type: all F32, mostly Q4_0 ...


def metadata(shape, tokenizer, kind, context_length):
    """Every key of a llama-architecture file, in the order written."""
    tier = "edge" if kind == gguf.Q4_0 else "cloud"
    types = [3 if token in SPECIALS else 1 for token in tokenizer.tokens]
    u32, text = gguf.U32, gguf.STRING
    return [
        ("general.architecture", text, "llama"),
        ("general.name", text, "updraft-demo"),
        ("general.description", text, f"Updraft demo model, {tier} file: screen actions and "
                                      "questions about sensor logs"),
        ("general.license", text, "Apache-2.0"),
        ("general.file_type", u32, FILE_TYPES[kind]),
        ("general.quantization_version", u32, 2),
        ("llama.vocab_size", u32, shape["vocab"]),
        ("llama.context_length", u32, context_length),
        ("llama.embedding_length", u32, shape["width"]),
        ("llama.block_count", u32, shape["layers"]),
        ("llama.feed_forward_length", u32, shape["feed_forward"]),
        ("llama.attention.head_count", u32, shape["heads"]),
        ("llama.attention.head_count_kv", u32, shape["kv_heads"]),
        ("llama.attention.key_length", u32, shape["head_dim"]),
        ("llama.attention.value_length", u32, shape["head_dim"]),
        ("llama.attention.layer_norm_rms_epsilon", gguf.F32_VALUE, shape["eps"]),
        ("llama.rope.dimension_count", u32, shape["head_dim"]),
        ("llama.rope.freq_base", gguf.F32_VALUE, shape["rope_base"]),
        ("tokenizer.ggml.model", text, "gpt2"),
        ("tokenizer.ggml.pre", text, PRE),
        ("tokenizer.ggml.tokens", (gguf.ARRAY, text), tokenizer.tokens),
        ("tokenizer.ggml.token_type", (gguf.ARRAY, gguf.I32), types),
        ("tokenizer.ggml.merges", (gguf.ARRAY, text), [" ".join(m) for m in tokenizer.merges]),
        ("tokenizer.ggml.eos_token_id", u32, tokenizer.ids[IM_END]),
        ("tokenizer.ggml.padding_token_id", u32, tokenizer.ids[END_OF_TEXT]),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, False),
        ("tokenizer.ggml.add_eos_token", gguf.BOOL, False),
        ("tokenizer.chat_template", text, CHAT_TEMPLATE),
    ]


def tensors(weights, kind):
    """[(name, shape, values, type)] in file order; matrices quantised, norms f32."""
    return [(name, list(value.shape), value.float().flatten().tolist(),
             kind if value.ndim == 2 else gguf.F32) for name, value in weights.items()]


def export(checkpoint_path, tokenizer, kind, context, path):
    checkpoint = torch.load(checkpoint_path, weights_only=True)
    gguf.write(path, metadata(checkpoint["shape"], tokenizer, kind, context),
               tensors(checkpoint["model"], kind))
    print(f"{path}: {path.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description="Export a training run to two GGUF files.")
    parser.add_argument("--run", required=True, help="folder that train.py wrote")
    parser.add_argument("--out", default="configs/models")
    parser.add_argument("--f32", help="write only this: the cloud file's weights, not quantised")
    options = parser.parse_args()
    run, out = Path(options.run), Path(options.out)
    tokenizer = ChatTokenizer.load(run / "tokenizer.json")
    if options.f32:
        export(run / "after-long.pt", tokenizer, gguf.F32, 4096, Path(options.f32))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    export(run / "after-quantised.pt", tokenizer, gguf.Q4_0, 512, out / EDGE_NAME)
    export(run / "after-long.pt", tokenizer, gguf.Q8_0, 4096, out / CLOUD_NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
