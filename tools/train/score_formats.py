#!/usr/bin/env python3
"""What each weight format costs the demo model: exact answers and distance from the f32 weights.

Quantises an f32 file of the model into every format with `updraft quantize`, answers held-out
conversations through a daemon that serves it, and compares next-token probabilities over the
conversations' text with `updraft quality`. Prints the table of the model card.

    python3 tools/train/export_gguf.py --run build/train --f32 build/train/demo-f32.gguf
    python3 tools/train/score_formats.py build/train/demo-f32.gguf --instructions 500 --logs 200

Standard library only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import conversations
import evaluate

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0")
START_SECONDS = 30
CONFIG = """[model]
path = "{model}"
name = "updraft-demo"
slots = 1
[pool]
routers = []
[http]
bind = "127.0.0.1"
port = 0
[local]
socket = "{folder}/edge.sock"
[log]
level = "warn"
"""


class Daemon:
    """An edge daemon without a router that serves one file; `url` is its endpoint."""

    def __init__(self, program, model, folder):
        config, ready = folder / "edge.toml", folder / "ready"
        ready.unlink(missing_ok=True)
        config.write_text(CONFIG.format(model=model, folder=folder))
        self.process = subprocess.Popen([program, "edge", "--config", config, "--ready-file", ready])
        end = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit(f"the daemon does not serve {model} (see above)")
            time.sleep(0.02)
        facts = dict(line.split("=", 1) for line in ready.read_text().splitlines())
        self.url = f"http://127.0.0.1:{facts['http_port']}/v1"

    def stop(self):
        self.process.terminate()
        self.process.wait()


def transcript(count, seed):
    """Text of held-out conversations with their answers, as the chat template writes it."""
    out = []
    for task in ("instructions", "logs"):
        for test in conversations.held_out(task, count, seed):
            for message in (*test.messages(), {"role": "assistant", "content": test.answer}):
                out.append(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n")
    return "".join(out)


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip() or f"{command[0]} failed")
    return done.stdout


def measure(program, reference, name, options, folder):
    """One row of the table."""
    model = folder / f"{name}.gguf"
    run(program, "quantize", reference, model, "--type", name)
    quality = json.loads(run(program, "quality", "-m", model, "--reference", reference, "--text",
                             folder / "text", "--window", 512, "--json"))
    row = {"format": name, "bytes": model.stat().st_size, **quality}
    daemon = Daemon(program, model, folder)
    try:
        asked = evaluate.parse_arguments(["--url", daemon.url, "--seed", str(options.seed)])
        for task in evaluate.TASKS:
            count = getattr(options, task)
            if count:
                result = evaluate.run_task(asked, task, count, lambda text: None)
                row[task] = f"{result['exact']}/{result['asked']}"
    finally:
        daemon.stop()
    model.unlink()
    return row


def main():
    parser = argparse.ArgumentParser(description="Scores of the demo model in every weight format.")
    parser.add_argument("model", help="the f32 file")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--instructions", type=int, default=500)
    parser.add_argument("--logs", type=int, default=200)
    parser.add_argument("--text-conversations", type=int, default=10, help="of each task, for the divergence")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updraft", default=str(ROOT / "build" / "bin" / "updraft"))
    options = parser.parse_args()
    print("| format | bytes | instructions exact | logs exact | KL divergence, mean | 99 % | same likeliest token |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").write_text(transcript(options.text_conversations, options.seed))
        for file_type in options.formats.split(","):
            row = measure(options.updraft, Path(options.model).resolve(), file_type, options, folder)
            print(f"| {file_type} | {row['bytes']:,} | {row.get('instructions', '')} | {row.get('logs', '')} "
                  f"| {row['kl_mean']:.2g} | {row['kl_p99']:.2g} | {100 * row['top1']:.2f} % |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
