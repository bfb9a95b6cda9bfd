"""The committed demo model's scores through the endpoint, on a part of the held-out sets."""

import json
import subprocess
import sys
import unittest

from harness import ROOT, StackTest


class DemoModel(StackTest):
    def test_40_instructions_and_20_logs(self):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools/train/evaluate.py"), "--url", f"http://127.0.0.1:{self.router.port}/v1", "--instructions", "40",
             "--logs", "20", "--min-instructions", "0.95", "--min-logs", "0.85", "--json", "--quiet"],
            capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(json.loads(done.stdout))


if __name__ == "__main__":
    unittest.main()
