"""tools/gpu_check against stand-ins for the programs that it starts: whatever one of them does, the others still answer."""

import importlib.machinery
import importlib.util
import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
GPU_CHECK = ROOT / "tools" / "gpu_check"

# Prints what updraft_gpu would for each of its commands; how each behaves stands in a file beside it.
PROGRAM = '''#!/usr/bin/env python3
import json, pathlib, subprocess, sys
what = sys.argv[1] if len(sys.argv) > 1 else "tests"
here = pathlib.Path(__file__)
with open(here.parent.parent / "calls.log", "a") as log:
    log.write(here.name + " " + " ".join(sys.argv[1:]) + "\\n")
behaviour = json.loads((here.parent.parent / "behaviour.json").read_text()).get(here.name + " " + what, {})
for line in behaviour.get("lines", []):
    print(line, flush=True)
subprocess.run(["sleep", str(behaviour.get("seconds", 0))])
sys.exit(behaviour.get("status", 0))
'''


class GpuCheck(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.build = Path(self.folder.name) / "build"
        for name in ("bin/updraft_gpu", "bin/updraft_gpu_emulated", "tests/test_cuda", "tests/test_cuda_gpu"):
            path = self.build / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PROGRAM)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.behaviour = {
            "test_cuda tests": dict(lines=["[doctest] test cases:  84 |  84 passed | 0 failed | 0 skipped"]),
            "test_cuda_gpu tests": dict(lines=["[doctest] test cases:  70 |  70 passed | 0 failed | 0 skipped"]),
            "updraft_gpu ceilings": dict(lines=[json.dumps(dict(group="ceiling", name="copy", value=4300.0, unit="GB/s"))]),
            "updraft_gpu attention": dict(lines=[self.measured("attention", "decode, 4096", 0.7, 0.65)]),
            "updraft_gpu load": dict(lines=[self.measured("load", "file to device, cold", 0.95, 0.9)]),
            "updraft_gpu model": dict(lines=[self.measured("decode", "bf16, batch 1", 0.5, 0.75)]),
        }

    @staticmethod
    def measured(group, name, share, target):
        return json.dumps(dict(group=group, name=name, value=100.0, unit="GB/s", share=share, of="copy", target=target, **{"pass": share >= target}))

    def run_check(self, *arguments, seconds=60, environment=None):
        (self.build / "behaviour.json").write_text(json.dumps(self.behaviour))
        out = Path(self.folder.name) / "out"
        done = subprocess.run(
            [sys.executable, GPU_CHECK, "--build", self.build, "--out", out, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False,
            env=dict(os.environ, OUT="", **(environment or {})),
        )
        return done.returncode, done.stdout, json.loads((out / "gpu_check.json").read_text())

    def line(self, document, name):
        found = [entry for entry in document["lines"] if entry["name"] == name]
        self.assertEqual(len(found), 1, document["lines"])
        return found[0]

    def test_a_missed_target_is_no_error_and_the_table_says_so(self):
        status, output, document = self.run_check("--only", "ceilings", "kernels", "attention", "load", "model")
        self.assertEqual(status, 0, output)
        self.assertRegex(output, r"attention +decode, 4096 .* 0\.70 +0\.65 pass")
        self.assertRegex(output, r"decode +bf16, batch 1 .* 0\.50 +0\.75 miss")
        self.assertEqual(self.line(document, "kernels on the GPU")["pass"], True)
        self.assertEqual([step["step"] for step in document["steps"]], ["ceilings", "kernels", "attention", "load", "model"])
        self.assertIs(document["rehearsal"], False)

    def test_later_steps_go_on_when_an_earlier_one_fails(self):
        self.behaviour["updraft_gpu ceilings"] = dict(lines=["cuda: no driver"], status=1)
        self.behaviour["updraft_gpu attention"]["status"] = 139
        status, output, document = self.run_check("--only", "ceilings", "attention", "load", "model")
        self.assertEqual(status, 1)
        self.assertIn("no driver", self.line(document, "updraft_gpu ceilings")["note"])
        self.assertIn("139", self.line(document, "updraft_gpu attention")["note"])
        self.assertEqual(self.line(document, "decode, 4096")["value"], 100.0)  # said before it fell
        self.assertEqual(self.line(document, "file to device, cold")["pass"], True)

    def test_a_step_without_end_is_ended_with_its_children_and_the_results_are_written(self):
        self.behaviour["updraft_gpu ceilings"]["seconds"] = 600
        begin = time.monotonic()
        status, output, document = self.run_check("--only", "ceilings", "model", "--minutes", "0.25")
        self.assertLess(time.monotonic() - begin, 40)
        self.assertEqual(status, 1)
        self.assertEqual(self.line(document, "copy")["value"], 4300.0)
        self.assertIn("124", self.line(document, "updraft_gpu ceilings")["note"])
        self.assertEqual(self.line(document, "model")["note"], "no time left")

    def test_a_warpgroup_kernel_that_is_wrong_is_left_alone_from_then_on(self):
        def verdict(name, **more):
            return json.dumps(dict(dict(group="products", name=name, value=0.0, unit=""), **more))

        product, attention = "warpgroup product = tile product", "warpgroup attention = mma.sync attention"
        right, wrong = {"pass": True}, {"pass": False, "note": "Q4_0: token 3"}
        for lines, left_alone in (
            ([verdict(product, **right), verdict(attention, **right)], False),
            ([verdict(product), verdict(attention)], False),  # not for this GPU
            ([verdict(product, **wrong), verdict(attention, **right)], True),
            ([verdict(product, **right), verdict(attention, **wrong)], True),
            ([verdict(product, **right)], True),  # it fell before it said more
        ):
            self.behaviour["updraft_gpu products"] = dict(lines=lines)
            (self.build / "calls.log").unlink(missing_ok=True)
            self.run_check("--only", "products", "kernels", "model")
            calls = (self.build / "calls.log").read_text().splitlines()
            self.assertEqual("updraft_gpu model --without-warpgroups" in calls, left_alone, calls)
            self.assertEqual("test_cuda_gpu -tce=*warpgroup*" in calls, left_alone, calls)
            self.assertIn("updraft_gpu products", calls)

    def test_kernels_that_found_no_gpu_or_ran_no_case_did_not_pass(self):
        self.behaviour["test_cuda_gpu tests"] = dict(status=77)
        self.behaviour["test_cuda tests"] = dict(lines=["nothing"], status=0)
        status, _, document = self.run_check("--only", "kernels")
        self.assertEqual(status, 1)
        self.assertEqual(self.line(document, "kernels on the GPU")["note"], "skipped: no GPU")
        self.assertIs(self.line(document, "kernels on the emulator")["pass"], False)

    def test_a_rehearsal_asks_the_emulator_and_says_what_it_passed_over(self):
        self.behaviour["updraft_gpu_emulated model"] = dict(lines=[json.dumps(dict(group="decode", name="small", value=1.0, unit="tokens/s"))])
        status, output, document = self.run_check("--rehearse", "--only", "ceilings", "kernels", "sanitizer", "attention", "load", "model", "peer")
        self.assertEqual(status, 0, output)
        calls = (self.build / "calls.log").read_text().splitlines()
        self.assertIn("updraft_gpu_emulated model --smoke", calls)
        self.assertFalse([call for call in calls if call.startswith(("updraft_gpu ", "test_cuda_gpu"))], calls)
        for step in ("ceilings", "kernels on the GPU", "sanitizer", "peer"):
            self.assertNotIn("pass", self.line(document, step))
        self.assertIs(document["rehearsal"], True)

    def stand_in(self, folder, name, text):
        path = Path(folder) / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def test_the_program_is_compiled_for_all_that_the_gpu_has(self):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            for name in ("cmake", "ninja"):
                self.stand_in(folder, name, f'echo {name} "$@" >> {log}\n')
            path = dict(PATH=folder + os.pathsep + os.environ["PATH"])
            for capability, expected in (("9.0\n9.0", "90a-real"), ("8.0", "80-real"), ("8.0\n9.0", "80-real;90a-real")):
                self.stand_in(folder, "nvidia-smi", f"printf '{capability}\\n'\n")
                log.unlink(missing_ok=True)
                _, output, document = self.run_check("--only", "build", environment=path)
                self.assertEqual(self.line(document, "configure and compile")["pass"], True, output)
                cmake, ninja = log.read_text().splitlines()
                self.assertIn(f"-DCMAKE_CUDA_ARCHITECTURES={expected}", cmake.split())
                self.assertTrue(ninja.endswith(" updraft_gpu"), ninja)  # the tests are compiled with their step

    def test_tests_that_do_not_compile_are_not_run_as_they_were(self):
        with tempfile.TemporaryDirectory() as folder:
            self.stand_in(folder, "ninja", "echo 'gemm_test.cpp: error: no'; exit 1\n")
            (self.build / "build.ninja").write_text("")
            status, _, document = self.run_check("--only", "kernels", environment=dict(PATH=folder + os.pathsep + os.environ["PATH"]))
            self.assertEqual(status, 1)
            self.assertIn("gemm_test.cpp", self.line(document, "compile the tests")["note"])
            self.assertFalse((self.build / "calls.log").exists())

    def test_what_the_sanitizer_says(self):
        loader = importlib.machinery.SourceFileLoader("gpu_check", str(GPU_CHECK))
        spec = importlib.util.spec_from_loader("gpu_check", loader)
        check = importlib.util.module_from_spec(spec)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        loader.exec_module(check)
        sys.dont_write_bytecode = before
        head = "========= COMPUTE-SANITIZER\n"
        error = "========= Invalid __global__ read of size 4 bytes\n"
        for status, output, passed, note in (
            (0, head + "========= ERROR SUMMARY: 0 errors\n", True, "nothing found"),
            (0, head + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True, "nothing found"),
            (9, head + error + "========= ERROR SUMMARY: 1 error\n", False, "Invalid __global__ read"),
            (124, head + "ended after 60 s", None, "cut off"),
            (124, head + error, False, "Invalid __global__ read"),
            (1, head + "[doctest] 1 failed\n========= ERROR SUMMARY: 0 errors\n", False, "exit status 1"),
        ):
            got, said = check.sanitizer_verdict(status, output, 60)
            self.assertIs(got, passed, output)
            self.assertIn(note, said)

    def test_tests_that_were_not_built_say_what_is_missing(self):
        (self.build / "tests" / "test_cuda_gpu").unlink()
        status, _, document = self.run_check("--only", "kernels")
        self.assertEqual(status, 1)
        self.assertIn("doctest", self.line(document, "kernels on the GPU")["note"])

    def test_the_header_that_such_a_machine_lacks_is_packed(self):
        folder = Path(self.folder.name) / "deps"
        done = subprocess.run([sys.executable, GPU_CHECK, "--pack", folder], stdout=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.returncode, 0)
        self.assertTrue((folder / "doctest" / "doctest.h").exists())


if __name__ == "__main__":
    unittest.main()
