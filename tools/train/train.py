#!/usr/bin/env python3
"""Trains the demo model: conversations.py in, a checkpoint for export_gguf.py out.

The one idea is the curriculum. Looking a line up in a log takes attention heads that small models
learn quickly from short logs and hardly ever from long ones, so logs grow from a dozen lines to a
few hundred. While they are short, gaps in the token positions already show the rotary embedding
the distances of long logs. The last phase trains with Q4_0 weights in the forward pass.

    python3 tools/train/train.py --out build/train            # about an hour on two cores
    python3 tools/train/train.py --out build/train --resume   # goes on from the last checkpoint
"""

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import conversations
from bpe import ChatTokenizer, learn
from model import Llama, Shape, begin_with_lookbacks, greedy

MAX_POSITION = 4000
VOCAB = 1408


@dataclass
class Phase:
    """`tokens` of training on logs of `lines`; `log_share` of the batches are logs."""

    name: str
    tokens: int
    lines: tuple
    log_share: float
    gaps: bool = False
    quantize: bool = False
    batch_tokens: int = 6144


PHASES = (
    Phase("tiny", 1_500_000, (3, 10), 0.5, batch_tokens=2048),
    Phase("short", 3_500_000, (4, 30), 0.5, gaps=True, batch_tokens=2560),
    Phase("middle", 5_000_000, (10, 100), 0.6, gaps=True, batch_tokens=4096),
    Phase("long", 8_000_000, (20, 265), 0.7, batch_tokens=6144),
    Phase("quantised", 4_000_000, (20, 265), 0.65, quantize=True, batch_tokens=6144),
)
WARM_UP_TOKENS = 400_000


def draw_log_batch(rng, tokenizer, phase):
    """Logs of nearly one length, each with several questions."""
    lo, hi = phase.lines
    lines = round(math.exp(rng.uniform(math.log(lo), math.log(hi + 0.5))))
    questions = max(3, min(16, lines // 2))
    count = max(1, round(phase.batch_tokens / (12 * lines + 45 * questions)))
    return [tokenizer.training_ids(conversations.train_logs(rng, lines, questions))
            for _ in range(count)]


def draw_instruction_batch(rng, tokenizer, phase):
    turns = rng.choice((1, 1, 2, 3))
    count = max(1, phase.batch_tokens // (110 * turns))
    drawn = [tokenizer.training_ids(conversations.train_instructions(rng, turns))
             for _ in range(2 * count)]
    drawn.sort(key=lambda pair: len(pair[0]))
    start = rng.choice((0, count))
    return drawn[start:start + count]


def positions_with_gaps(rng, length):
    """Rising positions below MAX_POSITION with up to three jumps."""
    room = MAX_POSITION - length
    cuts = sorted(rng.randrange(length) for _ in range(rng.randint(0, 3)))
    out, shift, previous = [], 0, 0
    for cut in cuts:
        out += range(previous + shift, cut + shift)
        jump = round(room / 3 * rng.random() ** 2)
        shift, previous = shift + jump, cut
    return out + list(range(previous + shift, length + shift))


def collate(rng, batch, gaps):
    """(ids, targets, positions) as tensors; targets hold -1 where nothing is learned."""
    width = max(len(ids) for ids, _ in batch) - 1
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    targets = torch.full((len(batch), width), -1, dtype=torch.long)
    positions = torch.arange(width).repeat(len(batch), 1)
    for row, (tokens, flags) in enumerate(batch):
        n = len(tokens) - 1
        ids[row, :n] = torch.tensor(tokens[:-1])
        shifted = [t if f else -1 for t, f in zip(tokens[1:], flags[1:])]
        targets[row, :n] = torch.tensor(shifted)
        if gaps and rng.random() < 0.5:
            positions[row] = torch.tensor(positions_with_gaps(rng, width))
    return ids, targets, positions


def answer_loss(model, ids, targets, positions):
    """Mean loss on answer tokens, and the share of them predicted right."""
    with torch.autocast("cpu", torch.bfloat16):
        states = model.hidden(ids, positions)
        wanted = targets >= 0
        logits = model.logits(states[wanted])
    logits = logits.float()
    right = (logits.argmax(1) == targets[wanted]).float().mean()
    return F.cross_entropy(logits, targets[wanted]), float(right)


def exact_share(model, tokenizer, tests):
    """Share of test conversations answered exactly at temperature 0."""
    right = 0
    for test in tests:
        out = greedy(model, tokenizer.prompt(test.messages()), tokenizer.end)
        right += tokenizer.decode(out) == test.answer
    return right / len(tests)


def probe(model, tokenizer, phase, seed):
    """Exact answers on a few conversations of the training distribution (never the test set)."""
    rng = random.Random(f"probe/{seed}")
    logs = [conversations.train_logs(rng, rng.randint(*phase.lines), 1) for _ in range(30)]
    orders = [conversations.train_instructions(rng, 1) for _ in range(40)]
    was = model.token_embd.quantize
    model.quantize(phase.quantize)
    scores = exact_share(model, tokenizer, logs), exact_share(model, tokenizer, orders)
    model.quantize(was)
    return scores


def make_optimizers(model):
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "blk" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blk" not in name]
    return (torch.optim.Muon(matrices, lr=0.01, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=0.001, betas=(0.9, 0.98), weight_decay=0.0))


def rate(tokens, total):
    """Learning-rate factor: warm-up, a plateau, then linear to almost zero."""
    warm = min(1.0, (tokens + 2000) / WARM_UP_TOKENS)
    return warm * min(1.0, max(0.02, (1 - tokens / total) / 0.6))


class Trainer:
    def __init__(self, options):
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.seed, self.scale = options.seed, options.scale
        torch.manual_seed(self.seed)
        self.tokenizer = ChatTokenizer(*learn(VOCAB, self.seed))
        self.tokenizer.save(self.out / "tokenizer.json")
        self.model = Llama(Shape(vocab=VOCAB))
        begin_with_lookbacks(self.model)
        self.optimizers = make_optimizers(self.model)
        self.base_rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.phase_index, self.phase_tokens, self.step = 0, 0, 0
        if options.resume:
            self.load()

    def checkpoint(self):
        return {"model": self.model.state_dict(), "shape": self.model.shape.to_dict(),
                "optimizers": [o.state_dict() for o in self.optimizers],
                "phase_index": self.phase_index, "phase_tokens": self.phase_tokens,
                "step": self.step}

    def save(self):
        partial = self.out / "checkpoint.pt.partial"
        torch.save(self.checkpoint(), partial)
        partial.replace(self.out / "checkpoint.pt")

    def load(self):
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.phase_index, self.phase_tokens = state["phase_index"], state["phase_tokens"]
        self.step = state["step"]

    def update(self, batch, gaps, rng, factor):
        loss, right = answer_loss(self.model, *collate(rng, batch, gaps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, base in zip(self.optimizers, self.base_rates):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()), right

    def run(self):
        total = sum(phase.tokens for phase in PHASES) * self.scale
        started, counted = time.time(), 0
        seen = {"log": [], "order": []}
        while self.phase_index < len(PHASES):
            phase = PHASES[self.phase_index]
            self.model.quantize(phase.quantize)
            while self.phase_tokens < phase.tokens * self.scale:
                rng = random.Random(f"batch/{self.seed}/{self.step}")
                is_log = rng.random() < phase.log_share
                draw = draw_log_batch if is_log else draw_instruction_batch
                batch = draw(rng, self.tokenizer, phase)
                before = sum(p.tokens for p in PHASES[:self.phase_index]) * self.scale
                done = (before + self.phase_tokens) / total
                result = self.update(batch, phase.gaps, rng, rate(done * total, total))
                seen["log" if is_log else "order"].append(result)
                size = sum(len(ids) for ids, _ in batch)
                self.phase_tokens, counted = self.phase_tokens + size, counted + size
                self.step += 1
                if self.step % 100 == 0:
                    self.report(phase, done, total, counted, time.time() - started, seen)
                if self.step % 500 == 0:
                    self.save()
                    scores = probe(self.model, self.tokenizer, phase, self.step)
                    print(f"  probe logs={scores[0]:.2f} orders={scores[1]:.2f}", flush=True)
            self.phase_index, self.phase_tokens = self.phase_index + 1, 0
            self.save()
            torch.save(self.checkpoint(), self.out / f"after-{phase.name}.pt")

    def report(self, phase, done, total, counted, seconds, seen):
        speed = counted / seconds
        parts = [f"{name} loss={sum(v[0] for v in values) / len(values):.4f} "
                 f"right={sum(v[1] for v in values) / len(values):.4f}"
                 for name, values in seen.items() if values]
        print(f"step={self.step} phase={phase.name} done={done:.3f} {' '.join(parts)} "
              f"tokens_per_s={speed:.0f} eta_s={(1 - done) * total / speed:.0f}", flush=True)
        for values in seen.values():
            values.clear()


def main():
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", required=True, help="folder for the tokenizer and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the tokens to train on")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    Trainer(options).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
