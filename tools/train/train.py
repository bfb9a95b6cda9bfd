#!/usr/bin/env python3
"""Trains the demo model: conversations.py in, a checkpoint for export_gguf.py out.

The one idea is the curriculum. Looking a line up in a log takes attention heads that small models
learn quickly from short logs and hardly ever from long ones, so logs grow from a dozen lines to a
few hundred. While nothing has learned to use the look-up circuit that the model starts with,
that circuit is frozen, or the first hundred steps would wash it away. While logs are short, gaps
in the token positions already show the rotary embedding the distances of long ones.
The last phase trains with Q4_0 weights in the forward pass.

Each core runs a whole replica on its share of a batch, and the replicas meet once per step to
average gradients: threads that meet inside every matrix product stall as soon as something else
wants a core.

    python3 tools/train/train.py --out build/train            # under half an hour on two cores
    python3 tools/train/train.py --out build/train --resume   # goes on from the last checkpoint
"""

import argparse
import math
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as processes
import torch.nn.functional as F

import conversations
from bpe import ChatTokenizer, learn
from model import Llama, Shape, begin_with_lookups, greedy

MAX_POSITION = 4000
VOCAB = 1408


@dataclass
class Phase:
    """`tokens` of training on logs of `lines`; `log_share` of the batches are logs."""

    name: str
    tokens: int
    lines: tuple
    log_share: float
    frozen: bool = False  # leave the look-up circuit as begin_with_lookups made it
    gaps: bool = False
    quantize: bool = False
    batch_tokens: int = 6144


PHASES = (
    Phase("tiny", 300_000, (3, 12), 0.4, frozen=True, batch_tokens=2048),
    Phase("short", 600_000, (5, 40), 0.45, frozen=True, gaps=True, batch_tokens=2560),
    Phase("middle", 1_000_000, (12, 110), 0.5, gaps=True, batch_tokens=3072),
    Phase("long", 9_500_000, (20, 265), 0.4, batch_tokens=4608),
    Phase("quantised", 3_000_000, (20, 60), 0.15, quantize=True, batch_tokens=3072),
)
FROZEN = ("token_embd", "blk.0.", "blk.1.attn_", "blk.3.attn_q", "blk.3.attn_k")
WARM_UP_TOKENS = 60_000


def draw_log_batch(kind_rng, rng, tokenizer, phase, budget):
    """About `budget` tokens of logs of one length, each with several questions.

    `kind_rng` is the same in every replica, so that all have the same work; `rng` is its own.
    """
    lo, hi = phase.lines
    lines = round(math.exp(kind_rng.uniform(math.log(lo), math.log(hi + 0.5))))
    questions = max(3, min(16, lines // 2))
    count = max(1, round(budget / (11 * lines + 40 * questions)))
    return [tokenizer.training_ids(conversations.train_logs(rng, lines, questions))
            for _ in range(count)]


def draw_instruction_batch(kind_rng, rng, tokenizer, phase, budget):
    turns, long_half = kind_rng.choice((1, 1, 2, 3)), kind_rng.random() < 0.5
    count = max(1, budget // (90 * turns))
    drawn = [tokenizer.training_ids(conversations.train_instructions(rng, turns))
             for _ in range(2 * count)]
    drawn.sort(key=lambda pair: len(pair[0]))
    return drawn[count:] if long_half else drawn[:count]


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
    model.eval()
    scores = exact_share(model, tokenizer, logs), exact_share(model, tokenizer, orders)
    model.train()
    return scores


def make_optimizers(model):
    """Muon for the layers' matrices, AdamW for the rest; slower for what starts as a circuit."""
    matrices, circuit = [], []
    for name, p in model.named_parameters():
        if p.ndim == 2 and name.startswith("blk"):
            (circuit if name.startswith(FROZEN) else matrices).append(p)
    norms = [p for p in model.parameters() if p.ndim != 2]
    return (torch.optim.Muon(matrices, lr=0.01, momentum=0.95, weight_decay=0.01),
            torch.optim.Muon(circuit, lr=0.004, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(norms, lr=0.002, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.AdamW([model.token_embd.weight], lr=0.0004, betas=(0.9, 0.98),
                              weight_decay=0.0))


def rate(phase_index, phase_tokens):
    """Learning-rate factor: warm-up, a plateau, linear to almost zero; once more for Q4_0."""
    if PHASES[phase_index].quantize:
        return 0.3 * max(0.05, 1 - phase_tokens / PHASES[phase_index].tokens)
    tokens = phase_tokens + sum(p.tokens for p in PHASES[:phase_index])
    total = sum(p.tokens for p in PHASES if not p.quantize)
    warm_up = min(1.0, (tokens + 2000) / WARM_UP_TOKENS)
    return warm_up * min(1.0, max(0.02, (1 - tokens / total) / 0.8))


class Meeting:
    """Where the replicas average their gradients. One row of `gradients` per replica."""

    def __init__(self, workers, parameter_count):
        self.workers = workers
        self.gradients = torch.zeros(workers, parameter_count).share_memory_()
        self.results = torch.zeros(workers, 2).share_memory_()
        self.barrier = processes.get_context("fork").Barrier(workers)

    def average(self, worker, parameters, result):
        """Replaces the gradients by their mean over the replicas; returns the mean result."""
        torch.cat([p.grad.flatten() for p in parameters], out=self.gradients[worker])
        self.results[worker] = torch.tensor(result)
        self.barrier.wait()
        mean, results = self.gradients.mean(0), self.results.mean(0).tolist()
        self.barrier.wait()
        offset = 0
        for p in parameters:
            p.grad.copy_(mean[offset:offset + p.numel()].view_as(p))
            offset += p.numel()
        return results


class Trainer:
    def __init__(self, options, worker=0, meeting=None):
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.seed = options.seed
        self.worker, self.meeting = worker, meeting
        torch.manual_seed(self.seed)
        saved = self.out / "tokenizer.json"
        self.tokenizer = (ChatTokenizer.load(saved) if options.resume
                          else ChatTokenizer(*learn(VOCAB, self.seed)))
        self.model = Llama(Shape(vocab=VOCAB))
        begin_with_lookups(self.model, self.tokenizer.tokens)
        self.parameters = list(self.model.parameters())
        self.optimizers = make_optimizers(self.model)
        self.base_rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.phase_index, self.phase_tokens, self.step = 0, 0, 0
        if worker == 0:
            self.tokenizer.save(saved)
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

    def update(self, batch, phase, rng, factor):
        loss, right = answer_loss(self.model, *collate(rng, batch, phase.gaps))
        loss.backward()
        result = self.meeting.average(self.worker, self.parameters, (float(loss.detach()), right))
        if phase.frozen:
            for name, parameter in self.model.named_parameters():
                if name.startswith(FROZEN):
                    parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, base in zip(self.optimizers, self.base_rates):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return result

    def run(self):
        total = sum(phase.tokens for phase in PHASES)
        started, counted = time.time(), 0
        seen = {"log": [], "order": []}
        while self.phase_index < len(PHASES):
            phase = PHASES[self.phase_index]
            self.model.quantize(phase.quantize)
            while self.phase_tokens < phase.tokens:
                before = sum(p.tokens for p in PHASES[:self.phase_index])
                done = (before + self.phase_tokens) / total
                size = self.one_step(phase, rate(self.phase_index, self.phase_tokens), seen)
                self.phase_tokens, counted = self.phase_tokens + size, counted + size
                self.step += 1
                if self.worker == 0 and self.step % 50 == 0:
                    self.report(phase, done, total, counted, time.time() - started, seen)
                if self.worker == 0 and self.step % 250 == 0:
                    self.save()
            self.phase_index, self.phase_tokens = self.phase_index + 1, 0
            if self.worker == 0:
                self.save()
                torch.save(self.checkpoint(), self.out / f"after-{phase.name}.pt")
                logs, orders = probe(self.model, self.tokenizer, phase, self.step)
                print(f"  after {phase.name}: logs={logs:.2f} orders={orders:.2f}", flush=True)

    def one_step(self, phase, factor, seen):
        """One update of all replicas. Returns the tokens of the planned batch."""
        kind_rng = random.Random(f"kind/{self.seed}/{self.step}")
        rng = random.Random(f"batch/{self.seed}/{self.step}/{self.worker}")
        is_log = kind_rng.random() < phase.log_share
        budget = phase.batch_tokens // self.meeting.workers
        draw = draw_log_batch if is_log else draw_instruction_batch
        batch = draw(kind_rng, rng, self.tokenizer, phase, budget)
        seen["log" if is_log else "order"].append(self.update(batch, phase, rng, factor))
        return phase.batch_tokens

    def report(self, phase, done, total, counted, seconds, seen):
        speed = counted / seconds
        parts = [f"{name} loss={sum(v[0] for v in values) / len(values):.4f} "
                 f"right={sum(v[1] for v in values) / len(values):.4f}"
                 for name, values in seen.items() if values]
        print(f"step={self.step} phase={phase.name} done={done:.3f} {' '.join(parts)} "
              f"tokens_per_s={speed:.0f} eta_s={(1 - done) * total / speed:.0f}", flush=True)
        for values in seen.values():
            values.clear()


def work(worker, options, meeting):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    Trainer(options, worker, meeting).run()


def main():
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", required=True, help="folder for the tokenizer and checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="replicas, one core each")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the replicas end as well
    parameter_count = sum(p.numel() for p in Llama(Shape(vocab=VOCAB)).parameters())
    processes.start_processes(work, (options, Meeting(options.workers, parameter_count)),
                              options.workers, daemon=True, start_method="fork")
    return 0


if __name__ == "__main__":
    sys.exit(main())
