#!/usr/bin/env python3
"""Compare Updraft's forward pass with Hugging Face transformers, and make the golden files of the tests.

Small random models of each architecture (two layers, 64 tokens of vocabulary) are saved as safetensors folders together
with the logits that transformers computes for them in f32. The C++ side is the test program itself: test_engine compares
every folder of a directory, by default tests/common/engine/golden, or the one that UPDRAFT_GOLDEN_DIR names.

    pip install torch transformers safetensors
    tools/numerics/compare_transformers.py --test build/tests/test_engine            # compare fresh random models
    tools/numerics/compare_transformers.py --out tests/common/engine/golden --seed 1 # write the committed files
    tools/numerics/compare_transformers.py --shapes gpu --out DIR  # widths that the CUDA kernels take (tools/gpu_check)

expected.bin, little-endian: int32 token_count, int32 vocab_count, int32 tokens[token_count],
f32 logits[token_count][vocab_count].
"""

import argparse
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import torch
import transformers

TOKENS = dict(small=48, gpu=100)
SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
# Heads of 64 and 128 dimensions, rows of whole blocks, more tokens than one step of small products takes.
GPU = dict(SMALL, vocab_size=512, hidden_size=256, intermediate_size=512)
GPU_HEAD_DIM = {8: 64, 16: 128}


def rope(kind="default", theta=10000.0, **more):
    return dict(rope_type=kind, rope_theta=theta, **more)


# name -> (model class, what differs from SMALL, stored type)
VARIANTS = {
    "llama": ("Llama", dict(), "float32"),
    "llama_tied_all_heads": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=4), "bfloat16"),
    "llama_bias": ("Llama", dict(attention_bias=True), "float16"),
    "llama_one_kv_head": ("Llama", dict(num_key_value_heads=1, head_dim=16), "bfloat16"),
    "llama_llama3": (
        "Llama",
        dict(
            rope_parameters=rope(
                "llama3", 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
            head_dim=16,
        ),
        "bfloat16",
    ),
    "llama_linear": ("Llama", dict(rope_parameters=rope("linear", factor=4.0)), "bfloat16"),
    "llama_yarn": (
        "Llama",
        dict(rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=32), head_dim=16),
        "bfloat16",
    ),
    "qwen2": ("Qwen2", dict(rope_parameters=rope(theta=1000000.0), rms_norm_eps=1e-6), "float32"),
    "qwen2_tied_yarn": (
        "Qwen2",
        dict(
            tie_word_embeddings=True,
            rope_parameters=rope(
                "yarn", 1000000.0, factor=8.0, original_max_position_embeddings=16, beta_fast=16.0, beta_slow=2.0,
                attention_factor=1.3,
            ),
        ),
        "float16",
    ),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, rms_norm_eps=1e-6), "bfloat16"),
    "qwen3_bias": ("Qwen3", dict(head_dim=8, attention_bias=True), "float16"),
    "glm4": (
        "Glm4",
        dict(head_dim=8, partial_rotary_factor=0.5, attention_bias=True, rms_norm_eps=1.5625e-07),
        "float32",
    ),
    "glm4_no_bias": ("Glm4", dict(head_dim=16, partial_rotary_factor=0.5, attention_bias=False), "bfloat16"),
}


def make_model(kind, changes, dtype, shapes):
    settings = dict(GPU if shapes == "gpu" else SMALL)
    settings.update(changes)
    if shapes == "gpu" and "head_dim" in settings:
        settings["head_dim"] = GPU_HEAD_DIM[settings["head_dim"]]
    # transformers 5 keeps what concerns rotation in one place.
    partial = settings.pop("partial_rotary_factor", None)
    if partial is not None:
        settings["rope_parameters"] = dict(settings.get("rope_parameters") or rope(), partial_rotary_factor=partial)
    config = getattr(transformers, kind + "Config")(**settings)
    if partial is not None:
        config.partial_rotary_factor = partial
    model = getattr(transformers, kind + "ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            elif "embed_tokens" in name:
                # A tied head over wide rows would give logits in the hundreds, and f32 errors to match.
                scale = 4.0 / parameter.shape[-1] ** 0.5 if shapes == "gpu" else 1.0
                parameter.copy_(scale * torch.randn_like(parameter))
            else:
                parameter.copy_(1.2 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
            # What is stored is what is computed with.
            parameter.copy_(parameter.to(getattr(torch, dtype)).to(torch.float32))
    return model


def old_style_config(folder):
    """The configuration as transformers 4 wrote it: rope_theta and rope_scaling beside each other."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope_parameters = config.pop("rope_parameters")
    config["rope_theta"] = rope_parameters.pop("rope_theta")
    partial = rope_parameters.pop("partial_rotary_factor", None)
    if partial is not None:
        config["partial_rotary_factor"] = partial
    config["rope_scaling"] = None if rope_parameters["rope_type"] == "default" else rope_parameters
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=1) + "\n")


def write_variant(folder, index, kind, changes, dtype, shapes):
    model = make_model(kind, changes, dtype, shapes).eval()
    token_count = TOKENS[shapes]
    tokens = torch.randint(0, model.config.vocab_size, (1, token_count))
    with torch.no_grad():
        logits = model(tokens).logits[0]
    # Only now: the conversion would round the rotary frequencies as well.
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if index % 3 == 2:
        old_style_config(folder)
    with open(folder / "expected.bin", "wb") as out:
        out.write(struct.pack("<ii", token_count, logits.shape[1]))
        out.write(tokens[0].to(torch.int32).numpy().tobytes())
        out.write(logits.to(torch.float32).contiguous().numpy().tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the folders here (replaced)")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one")
    parser.add_argument("--shapes", choices=("small", "gpu"), default="small")
    parser.add_argument("--test", help="test_engine to run on them")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "little")
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, seed {seed}")
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or pathlib.Path(scratch)
        for index, (name, (kind, changes, dtype)) in enumerate(VARIANTS.items()):
            folder = out / name
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_variant(folder, index, kind, changes, dtype, arguments.shapes)
            print("made", name)
        if arguments.test:
            environment = dict(os.environ, UPDRAFT_GOLDEN_DIR=str(out.resolve()))
            return subprocess.run([arguments.test, "-tc=*transformers*"], env=environment, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
