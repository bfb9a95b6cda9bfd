"""tools/bench/compare against stand-ins that print what the real programs print."""

import json
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMPARE = ROOT / "tools" / "bench" / "compare"

# The fields that compare reads, in the shape of llama-bench's -o json; the speed depends on what was asked.
LLAMA_BENCH = '''#!/usr/bin/env python3
import json, sys
a = sys.argv[1:]
if "--help" in a:
    print("  -p, --n-prompt <n>  (default: 512)" + {extra!r})
    sys.exit(0)
with open({log!r}, "a") as log:
    log.write(" ".join(a) + "\\n")
if {status}:
    print("error: unable to load model", file=sys.stderr)
    sys.exit({status})
value = lambda flag: a[a.index(flag) + 1] if flag in a else "0"
depth = int(value("-d"))
rows = []
for fa in value("-fa").split(","):
    gain = 1.0 + 0.1 * int(fa)
    for p in map(int, value("-p").split(",")):
        if p: rows.append(dict(n_prompt=p, n_gen=0, n_depth=depth, avg_ts={speed} * gain))
    if int(value("-n")):
        rows.append(dict(n_prompt=0, n_gen=int(value("-n")), n_depth=depth, avg_ts={speed} / 10 * gain))
    if "-gp" in a:
        p, n = map(int, value("-gp").split(","))
        rows.append(dict(n_prompt=p, n_gen=n, avg_ts={speed} / 20 * gain))
print(json.dumps(rows))
'''

UPDRAFT = '''#!/usr/bin/env python3
import json, sys
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
turn = open({log!r}).read().count("bench --json")
for test, value in (("pp512", 300.0), ("tg128", 30.0), ("tg128@d4096", 21.0), ("load", 0.5)):
    print(json.dumps(dict(test=test, value=value * (10 if turn == 2 else 1), share=0.5 if test != "load" else None, limit="int8")))
'''


class Compare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.log = str(self.path / "log")
        self.model = str(self.path / "m.gguf")
        Path(self.model).write_bytes(b"GGUF" + bytes(996))
        self.updraft = self.program("updraft", UPDRAFT.format(log=self.log))

    def tearDown(self):
        self.folder.cleanup()

    def program(self, name, text):
        path = self.path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def llama_bench(self, name, speed=100.0, extra="", status=0):
        return self.program(name, LLAMA_BENCH.format(log=self.log, speed=speed, extra=extra, status=status))

    def compare(self, *arguments):
        return subprocess.run([sys.executable, str(COMPARE), "--updraft", self.updraft, *arguments],
                              capture_output=True, text=True)

    def test_ratios_and_the_summary_line_come_from_the_better_setting_of_each_peer(self):
        llama = self.llama_bench("llama-bench", speed=100.0)
        ik = self.llama_bench("ik-bench", speed=200.0, extra=" -rtr, --run-time-repack <0|1>")
        done = self.compare("-p", "512", "-r", "3", llama, ik, self.model)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
        # Medians of three rounds: the one round that is ten times faster does not count. 300 / 110, 300 / 220.
        self.assertEqual(rows["pp512"], ["pp512", "300", "50", "%", "int8", "110", "220", "2.73", "1.36"])
        self.assertEqual(rows["tg128"][-2:], ["2.73", "1.36"])
        self.assertEqual(rows["tg128@d4096"][-2:], ["1.91", "1.91"])
        self.assertEqual(rows["load"], ["load", "0.5"])
        last = done.stdout.splitlines()[-1]
        self.assertTrue(last.startswith("summary: "), last)
        self.assertIn("prefill 2.73x llama.cpp, 1.36x the best", last)
        self.assertIn("4 of 4 wanted ratios met", last)

    def test_programs_take_turns_and_get_the_same_threads(self):
        llama = self.llama_bench("llama-bench")
        done = self.compare("-p", "512", "-d", "0", "-r", "2", "-t", "3", llama, self.model)
        self.assertEqual(done.returncode, 0, done.stderr)
        asked = Path(self.log).read_text().splitlines()
        self.assertEqual([line.startswith("bench --json") for line in asked], [True, False, False, True])
        self.assertTrue(all("-t 3" in line for line in asked), asked)

    def test_what_cannot_be_used_is_named_and_ends_with_status_1(self):
        llama = self.llama_bench("llama-bench")
        other = self.program("other", "#!/bin/sh\necho hello\n")
        broken = self.llama_bench("broken-bench", status=7)
        plain = self.path / "plain"
        plain.write_text("text")
        for arguments, words in (((str(self.path / "none"), self.model), "none: no such file"),
                                 ((str(plain), self.model), "plain: is no program"),
                                 ((other, self.model), "other: is no llama-bench"),
                                 ((llama, str(self.path / "no.gguf")), "no.gguf: cannot be read"),
                                 ((llama,), "one .gguf file"),
                                 ((broken, self.model), "exit status 7: error: unable to load model")):
            done = self.compare("-r", "1", *arguments)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertIn(words, done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_sequences_at_once_are_compared_when_the_batched_program_is_there(self):
        llama = self.llama_bench("llama-bench")
        self.program("llama-batched-bench", "#!/bin/sh\necho noise\necho '{\"pl\": 8, \"speed_tg\": 50.0}'\n")
        self.updraft = self.program("updraft", "#!/bin/sh\necho '" + json.dumps(
            {"test": "tg128x8", "value": 200.0, "share": 0.4, "limit": "int8"}) + "'\n")
        done = self.compare("-r", "1", "-d", "0", llama, self.model)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("sequences at once 4.00x llama.cpp", done.stdout.splitlines()[-1])


if __name__ == "__main__":
    unittest.main()
