"""The GGUF writer and its quantisers, and the two committed model files."""

import json
import random
import re
import struct
import tempfile
import unittest
from pathlib import Path

import places
import conversations
import gguf

EDGE = places.MODELS / "updraft-demo-edge-q4_0.gguf"
CLOUD = places.MODELS / "updraft-demo-cloud-q8_0.gguf"


class Quantisers(unittest.TestCase):
    def test_blocks_are_those_of_ggml_byte_for_byte(self):
        path = places.DATA / "golden" / "ggml_quant_blocks.json"
        if not path.exists():
            self.skipTest(f"{path} is not there")
        golden = json.loads(path.read_text())
        values = [struct.unpack("<f", struct.pack("<f", v))[0]
                  for row in golden["weight_f32_2x128"] for v in row]
        for kind, key in ((gguf.Q8_0, "q8_0_bytes_i8"), (gguf.Q4_0, "q4_0_bytes_i8")):
            expected = bytes(v & 255 for v in golden[key])
            self.assertEqual(gguf.quantize(values, kind), expected, key)

    def test_known_blocks(self):
        # -8 sets the Q4_0 scale to 1: code = value + 8, and 7.4 rounds to 7.
        block = [-8.0, 7.4, 0.0] + [1.0] * 29
        data = gguf.quantize_q4_0(block)
        self.assertEqual(data[:2], struct.pack("<e", 1.0))
        self.assertEqual(data[2], 0 | 9 << 4)
        self.assertEqual(data[3], 15 | 9 << 4)
        # 127 sets the Q8_0 scale to 1; halves round away from zero.
        codes = struct.unpack("<e32b", gguf.quantize_q8_0([127.0, 2.5, -2.5] + [0.0] * 29))
        self.assertEqual(codes[:4], (1.0, 127, 3, -3))

    def test_a_block_of_zeros_stays_zero(self):
        for kind in (gguf.Q4_0, gguf.Q8_0):
            values = gguf.dequantize(gguf.quantize([0.0] * 64, kind), kind)
            self.assertEqual(list(values), [0.0] * 64)

    def test_rounding_error_is_at_most_half_a_step(self):
        rng = random.Random(1)
        block = [gguf.to_f32(rng.gauss(0, 1)) for _ in range(32)]
        for kind, steps in ((gguf.Q4_0, 8), (gguf.Q8_0, 127)):
            step = max(map(abs, block)) / steps
            back = gguf.dequantize(gguf.quantize(block, kind), kind)
            # The Q4_0 range ends at 7 steps on the side away from the extreme value.
            room = 1.001 * step if kind == gguf.Q4_0 else 0.51 * step
            self.assertTrue(all(abs(a - b) <= room for a, b in zip(block, back)))


class Files(unittest.TestCase):
    def write(self, folder, rows=4):
        path = Path(folder) / "x.gguf"
        values = [gguf.to_f32(random.Random(2).gauss(0, 1)) for _ in range(rows * 64)]
        gguf.write(path, [("a.text", gguf.STRING, "é"), ("a.list", (gguf.ARRAY, gguf.I32), [1, -2]),
                          ("a.flag", gguf.BOOL, False)],
                   [("m", [rows, 64], values, gguf.Q8_0), ("n", [3], [1.0, 2.0, 3.0], gguf.F32)])
        return path

    def test_what_is_written_is_read_back(self):
        with tempfile.TemporaryDirectory() as folder:
            file = gguf.read(self.write(folder))
        self.assertEqual(file.metadata, {"a.text": "é", "a.list": [1, -2], "a.flag": False})
        self.assertEqual(file.tensors["m"].shape, [4, 64])
        self.assertEqual(list(file.tensors["n"].values), [1.0, 2.0, 3.0])

    def test_a_truncated_file_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = self.write(folder)
            data = path.read_bytes()
            for size in (3, 20, 60, len(data) - 40):
                path.write_bytes(data[:size])
                with self.assertRaises(ValueError):
                    gguf.read(path)

    def test_rows_that_do_not_fill_blocks_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(ValueError, "weights: 33 columns"):
                gguf.write(Path(folder) / "x.gguf", [],
                           [("weights", [1, 33], [0.0] * 33, gguf.Q4_0)])


def encode(text, ids, ranks):
    """Byte-level BPE of ASCII text under the llama-bpe splitter."""
    words = re.findall(r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\r\nA-Za-z0-9]?[A-Za-z]+"
                       r"|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", text)
    out = []
    for word in words:
        parts = list(word.replace(" ", "Ġ").replace("\n", "Ċ"))
        while len(parts) > 1:
            pairs = [ranks.get(pair, len(ranks)) for pair in zip(parts, parts[1:])]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] == len(ranks):
                break
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        out += [ids[part] for part in parts]
    return out


class CommittedModels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.edge, cls.cloud = gguf.read(EDGE), gguf.read(CLOUD)

    def test_both_files_together_stay_below_6_mb(self):
        self.assertLessEqual(EDGE.stat().st_size + CLOUD.stat().st_size, 6_000_000)

    def test_context_lengths_and_quantisation_are_those_of_the_tiers(self):
        for file, context, kind in ((self.edge, 512, gguf.Q4_0), (self.cloud, 4096, gguf.Q8_0)):
            self.assertEqual(file.metadata["llama.context_length"], context)
            for name, tensor in file.tensors.items():
                self.assertEqual(tensor.kind, kind if len(tensor.shape) == 2 else gguf.F32, name)

    def test_the_files_differ_only_in_tier(self):
        own = {"general.description", "general.file_type", "llama.context_length"}
        shared = lambda file: {k: v for k, v in file.metadata.items() if k not in own}
        self.assertEqual(shared(self.edge), shared(self.cloud))
        self.assertEqual({n: t.shape for n, t in self.edge.tensors.items()},
                         {n: t.shape for n, t in self.cloud.tensors.items()})

    def test_the_vocabulary_is_whole(self):
        keys = self.edge.metadata
        tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
        self.assertEqual(len(tokens), len(set(tokens)))
        self.assertEqual(len(tokens), keys["llama.vocab_size"])
        self.assertEqual(self.edge.tensors["token_embd.weight"].shape[0], len(tokens))
        control = [t for t, kind in zip(tokens, types) if kind == 3]
        self.assertEqual(control, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        self.assertEqual(tokens[keys["tokenizer.ggml.eos_token_id"]], "<|im_end|>")
        for merge in keys["tokenizer.ggml.merges"]:
            left, right = merge.split(" ")
            self.assertLessEqual({left, right, left + right}, set(tokens))

    def test_held_out_logs_are_600_to_3000_tokens(self):
        keys = self.cloud.metadata
        ids = {token: i for i, token in enumerate(keys["tokenizer.ggml.tokens"])}
        ranks = {tuple(m.split(" ")): i for i, m in enumerate(keys["tokenizer.ggml.merges"])}
        for test in conversations.held_out("logs", 20):
            count = sum(len(encode(m["content"], ids, ranks)) for m in test.messages())
            self.assertTrue(600 <= count <= 3000, count)


if __name__ == "__main__":
    unittest.main()
