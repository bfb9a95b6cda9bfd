"""score_formats.py on the committed cloud file, with the program that was built."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import places

PROGRAM = Path(os.environ.get("UPDRAFT_PROGRAM", places.ROOT / "build" / "bin" / "updraft"))


@unittest.skipUnless(os.access(PROGRAM, os.X_OK), f"{PROGRAM} is not built")
class ScoreFormats(unittest.TestCase):
    def test_the_table_has_a_row_per_format_and_fewer_bits_cost_more(self):
        with tempfile.TemporaryDirectory() as folder:
            reference = Path(folder) / "f32.gguf"
            subprocess.run([PROGRAM, "quantize", places.MODELS / "updraft-demo-cloud-q8_0.gguf", reference, "--type", "f32",
                            "--allow-requantize"], check=True, capture_output=True)
            done = subprocess.run(
                [sys.executable, places.TOOLS / "score_formats.py", reference, "--formats", "f32,q8_0,q4_0",
                 "--instructions", "4", "--logs", "0", "--text-conversations", "1", "--updraft", PROGRAM],
                capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
            self.assertEqual([row[0] for row in rows], ["f32", "q8_0", "q4_0"])
            sizes = [int(row[1].replace(",", "")) for row in rows]
            self.assertEqual(sizes, sorted(sizes, reverse=True))
            divergences = [float(row[4]) for row in rows]
            self.assertEqual(divergences, sorted(divergences))
            self.assertLess(divergences[0], 1e-4)
            self.assertTrue(all(row[2].endswith("/4") for row in rows), rows)

    def test_a_model_that_cannot_be_read_is_named(self):
        done = subprocess.run([sys.executable, places.TOOLS / "score_formats.py", "/nowhere/f32.gguf", "--updraft", PROGRAM],
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nowhere/f32.gguf: no such file", done.stderr)


if __name__ == "__main__":
    unittest.main()
