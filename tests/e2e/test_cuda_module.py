"""`updraft run` on the CUDA engine, over the emulator: found, refused, and of the CPU's opinion."""

import os
import subprocess
import unittest

from harness import EDGE_MODEL, PROGRAM

MODULE = PROGRAM.parent.parent / "tests/modules/libupdraft_cuda_emulated.so"


def run(device, module, *arguments):
    environment = dict(os.environ, UPDRAFT_CUDA_MODULE=str(module))
    return subprocess.run([str(PROGRAM), "run", "-m", str(EDGE_MODEL), "--device", device, "--temp", "0", *arguments],
                          capture_output=True, text=True, timeout=300, env=environment)


class CudaModule(unittest.TestCase):
    def test_greedy_answers_are_those_of_the_cpu(self):
        for prompt in ("hello", "What is an edge node?"):
            cpu = run("cpu", MODULE, "-p", prompt, "-n", "12")
            self.assertEqual(cpu.returncode, 0, cpu.stderr)
            cuda = run("cuda", MODULE, "-p", prompt, "-n", "12")
            self.assertEqual(cuda.returncode, 0, cuda.stderr)
            self.assertIn("cuda emulated GPU", cuda.stderr)
            self.assertEqual(cuda.stdout, cpu.stdout)

    def test_auto_takes_the_gpu_that_is_there_and_else_the_cpu(self):
        self.assertIn("cuda emulated GPU", run("auto", MODULE, "-p", "hello", "-n", "1").stderr)
        without = run("auto", "/nowhere/cuda.so", "-p", "hello", "-n", "1")
        self.assertEqual(without.returncode, 0, without.stderr)
        self.assertIn("cpu ", without.stderr)

    def test_cuda_without_a_module_or_with_one_that_is_none_is_one_line(self):
        for module, why in (("/nowhere/cuda.so", "UPDRAFT_CUDA_MODULE names /nowhere/cuda.so, which is not there"),
                            (MODULE.parent / "libother_version.so", "is of Updraft 9.9.9")):
            done = run("cuda", module, "-p", "hello", "-n", "1")
            self.assertEqual(done.returncode, 1)
            self.assertIn(why, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
