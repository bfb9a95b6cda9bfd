"""The commands as a newcomer meets them: help, clear errors, run, chat, keys, up."""

import http.server
import json
import os
import pathlib
import pty
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from harness import CLOUD_MODEL, EDGE_MODEL, PROGRAM, ROOT, SHARED_DATA, Stack, StackTest, wait_until


GOLDEN = ROOT / "tests/common/engine/golden/llama"  # a folder of safetensors without tokenizer.json


def updraft(*arguments, **options):
    return subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


class Help(unittest.TestCase):
    def test_every_command_explains_itself(self):
        top = updraft("--help")
        self.assertEqual(top.returncode, 0)
        for command in ("up", "edge", "cloud", "router", "chat", "run", "keys"):
            self.assertIn(command, top.stdout)
            one = updraft(command, "--help")
            self.assertEqual(one.returncode, 0)
            self.assertIn("--help", one.stdout)

    def test_a_wrong_flag_and_no_command_are_usage_errors(self):
        self.assertEqual(updraft("--nonsense").returncode, 2)
        bare = updraft()
        self.assertEqual(bare.returncode, 2)
        self.assertIn("updraft up", bare.stderr)  # the whole help
        for words, named in ((("nonsense",), "'nonsense'"), (("keys", "nonsense"), "'nonsense'"), (("keys",), "updraft keys: "),
                             (("run",), "updraft run: --model is required"), (("bench", "-p", "9999999"), "--prompt: Value 9999999 not in range"), (("edge", "--colour"), "updraft edge: "),
                             (("run", "-m", "x", "--max-memory", "much"), "--max-memory: \"much\"")):
            done = updraft(*words)
            self.assertEqual(done.returncode, 2)
            self.assertIn(named, done.stderr)
            self.assertIn("--help' for what there is", done.stderr)
        self.assertEqual(updraft("run", "--temp", "9", "-m", "x").returncode, 2)

    def test_the_committed_configurations_are_valid(self):
        for kind in ("router", "edge", "cloud"):
            done = updraft(kind, "--config", ROOT / f"configs/{kind}.toml", "--check-config")
            self.assertEqual(done.returncode, 0, done.stderr)


class ClearErrors(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def failed(self, *arguments, words=(), **options):
        done = updraft(*arguments, **options)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("updraft: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])

    def config(self, kind, change):
        text = (ROOT / f"configs/{kind}.toml").read_text()
        path = pathlib.Path(self.folder.name) / f"{kind}.toml"
        path.write_text(change(text))
        return path

    def test_a_model_larger_than_the_memory_it_may_take_says_what_it_needs(self):
        for size in ("1 MiB", "1048576"):
            self.failed("run", "-m", EDGE_MODEL, "-p", "x", "--device", "cpu", "--max-memory", size, words=("does not fit", "1.0 MiB are allowed by max_memory"))
        self.assertEqual(updraft("run", "-m", EDGE_MODEL, "-p", "x", "-n", "1", "--max-memory", "0.5 GiB").returncode, 0)

    def test_unknown_keys_ranges_and_syntax_name_file_line_and_key(self):
        for kind in ("router", "edge", "cloud"):
            path = self.config(kind, lambda text: text + "\n[extra]\nnonsense = 1\n")
            self.failed(kind, "--config", path, "--check-config", words=(str(path), "nonsense"))
            path = self.config(kind, lambda text: text + "\n[broken\n")
            self.failed(kind, "--config", path, "--check-config", words=(str(path),))
        path = self.config("edge", lambda text: text.replace("slots = 4", "slots = 0"))
        self.failed("edge", "--config", path, "--check-config", words=("slots", "0", "1.."))
        self.failed("edge", "--config", ROOT / "configs/edge.toml", "--check-config", "--set", "model.slots=many", words=("model.slots", "many"))
        self.failed("edge", "--config", ROOT / "configs/edge.toml", "--check-config", "--set", "model.slotz=1", words=("model.slotz",))
        self.failed("router", "--config", "/nonexistent.toml", words=("/nonexistent.toml", "no such file", "--config"))

    def test_models_that_are_missing_truncated_or_of_an_unknown_architecture(self):
        self.failed("run", "-m", "/nonexistent.gguf", "-p", "x", words=("/nonexistent.gguf",))
        whole = EDGE_MODEL.read_bytes()
        cut = pathlib.Path(self.folder.name) / "cut.gguf"
        cut.write_bytes(whole[: len(whole) // 2])
        self.failed("run", "-m", cut, "-p", "x", words=("cut.gguf",))
        other = pathlib.Path(self.folder.name) / "other.gguf"
        key = b"general.architecture"
        at = whole.index(key) + len(key) + 4 + 8
        self.assertEqual(whole[at : at + 5], b"llama")
        other.write_bytes(whole[:at] + b"lamma" + whole[at + 5 :])
        self.failed("run", "-m", other, "-p", "x", words=("other.gguf", "lamma"))
        # The daemons say the same, on one line, and end.
        stack = Stack()
        self.addCleanup(stack.close)
        for kind in ("edge", "cloud"):
            for path, word in ((cut, "cut.gguf"), (other, "lamma")):
                self.failed(kind, "--config", stack.folder / f"{kind}.toml", "--set", f"model.path={path}", "--set", "http.port=0", "--set",
                            f"pool.key={stack.folder}/keys/{kind}", "--set", f"pool.router_key={stack.folder}/keys/router.pub", words=(word,))

    def test_a_folder_without_a_tokenizer_says_what_is_missing_and_what_works(self):
        self.failed("run", "-m", GOLDEN, "-p", "x", words=(str(GOLDEN), "tokenizer.json", "--prompt-ids"))
        self.failed("run", "-m", GOLDEN, "--prompt-ids", "1,2", "--stop", "x", words=("no tokenizer", "--stop"))
        self.failed("run", "-m", GOLDEN, "--prompt-ids", "1,64", words=("64", "vocabulary"))

    def test_too_little_memory_is_one_line_with_figures(self):
        stack = Stack()
        self.addCleanup(stack.close)
        path = self.config("cloud", lambda text: text)
        self.failed("cloud", "--config", path, "--set", "model.path=" + str(CLOUD_MODEL), "--set", "model.max_memory=2 MiB",
                    "--set", f"pool.key={stack.folder}/keys/cloud", "--set", f"pool.router_key={stack.folder}/keys/router.pub",
                    "--set", "http.port=0", words=("memory", "MiB"))

    def test_a_port_in_use_is_named(self):
        stack = Stack()
        self.addCleanup(stack.close)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            common = ["--config", stack.folder / "router.toml", "--set", f"pool.key={stack.folder}/keys/router", "--set",
                      f"pool.nodes={stack.folder}/keys/nodes"]
            self.failed("router", *common, "--set", f"http.port={port}", "--set", "pool.listen=tcp://127.0.0.1:0", words=(str(port), "use"))
            self.failed("router", *common, "--set", "http.port=0", "--set", f"pool.listen=tcp://127.0.0.1:{port}", words=(str(port), "use"))

    def test_a_public_address_without_keys_is_refused(self):
        stack = Stack()
        self.addCleanup(stack.close)
        self.failed("router", "--config", stack.folder / "router.toml", "--set", f"pool.key={stack.folder}/keys/router", "--set",
                    f"pool.nodes={stack.folder}/keys/nodes", "--set", "http.port=0", "--set", "pool.listen=tcp://127.0.0.1:0", "--set",
                    "http.bind=0.0.0.0", words=("0.0.0.0",))

    def test_missing_keys_say_how_they_are_made_before_a_model_is_loaded(self):
        stack = Stack(nodes=())
        self.addCleanup(stack.close)
        for kind in ("router", "edge", "cloud"):
            absent = str(stack.folder / "keys/absent")
            model = [] if kind == "router" else ["--set", "model.path=/nonexistent.gguf"]
            self.failed(kind, "--config", stack.folder / f"{kind}.toml", "--set", f"pool.key={absent}", "--set", "http.port=0", *model,
                        words=(absent, f"updraft keys new {absent}"))

    def test_a_daemon_that_could_not_start_does_not_say_that_it_stopped(self):
        stack = Stack()
        self.addCleanup(stack.close)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            for kind, model in (("edge", EDGE_MODEL), ("cloud", CLOUD_MODEL)):
                done = updraft(kind, "--config", stack.folder / f"{kind}.toml", "--set", f"model.path={model}", "--set",
                               f"http.port={taken.getsockname()[1]}", "--set", f"pool.key={stack.folder}/keys/{kind}", "--set",
                               f"pool.router_key={stack.folder}/keys/router.pub", env=stack.env)
                self.assertEqual(done.returncode, 1)
                self.assertIn("use", done.stderr)
                self.assertNotIn("stopped", done.stdout + done.stderr)

    def test_keys_others_can_read_are_refused(self):
        stack = Stack()
        self.addCleanup(stack.close)
        os.chmod(stack.folder / "keys/router", 0o644)
        self.failed("router", "--config", stack.folder / "router.toml", "--set", f"pool.key={stack.folder}/keys/router", "--set",
                    f"pool.nodes={stack.folder}/keys/nodes", "--set", "http.port=0", "--set", "pool.listen=tcp://127.0.0.1:0",
                    words=("keys/router",))


class Run(unittest.TestCase):
    def test_greedy_ids_of_the_reference_model(self):
        weights = SHARED_DATA / "weights"
        if not weights.exists():
            self.skipTest(f"{weights} is not there")
        expected = json.loads((weights / "stories260K-greedy200.json").read_text())
        done = updraft("run", "-m", weights / "stories260K-f32.gguf", "--prompt-ids", ",".join(map(str, expected["prompt_ids"])), "--temp", "0",
                       "-n", "200", "--print-ids", "--ignore-eos", "-q")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([int(word) for word in done.stdout.split()], expected["greedy_ids"])

    def test_a_folder_without_a_tokenizer_runs_on_ids(self):
        # The last row of the logits that Hugging Face transformers computes for these tokens says which comes next.
        raw = (GOLDEN / "expected.bin").read_bytes()
        count, vocabulary = struct.unpack_from("<2i", raw)
        tokens = struct.unpack_from(f"<{count}i", raw, 8)
        last = struct.unpack_from(f"<{vocabulary}f", raw, 8 + 4 * count + 4 * vocabulary * (count - 1))
        done = updraft("run", "-m", GOLDEN, "--prompt-ids", ",".join(map(str, tokens)), "--temp", "0", "-n", "1", "--ignore-eos")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.split(), [str(max(range(vocabulary), key=last.__getitem__))])
        self.assertIn("no tokenizer", done.stderr)
        weights = SHARED_DATA / "weights"
        if not weights.exists():
            self.skipTest(f"{weights} is not there")
        expected = json.loads((weights / "stories260K-greedy200.json").read_text())
        done = updraft("run", "-m", weights / "stories260K-hf", "--prompt-ids", ",".join(map(str, expected["prompt_ids"])), "--temp", "0",
                       "-n", "200", "--ignore-eos", "-q")
        self.assertEqual([int(word) for word in done.stdout.split()], expected["greedy_ids"])

    def test_the_demo_model_answers_with_an_action(self):
        done = updraft("run", "-m", EDGE_MODEL, "-p", "Swipe up please", "--temp", "0", "-q")
        self.assertEqual(done.stdout.strip(), 'do(action="Swipe", start=[500,800], end=[500,200])')

    def test_refused_prompts_leave_standard_output_empty(self):
        done = updraft("run", "-m", EDGE_MODEL, "-p", "x", "-n", "100000", "-q")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        for word in ("100000", "512", "updraft-demo"):
            self.assertIn(word, done.stderr)
        done = updraft("run", "-m", EDGE_MODEL, "-q", stdin=subprocess.DEVNULL)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("standard input is empty", done.stderr)
        self.assertEqual(updraft("run", "-m", EDGE_MODEL, "-p", "x", "--prompt-ids", "1").returncode, 2)

    def test_the_prompt_may_come_on_standard_input(self):
        done = updraft("run", "-m", EDGE_MODEL, "--temp", "0", "-q", input="Swipe up please")
        self.assertEqual(done.stdout.strip(), 'do(action="Swipe", start=[500,800], end=[500,200])')


class Chat(StackTest):
    def test_through_the_endpoint_and_through_shared_memory(self):
        url = f"http://127.0.0.1:{self.router.port}/v1"
        for how in (("--url", url), ("--local", "--socket", self.stack["edge"].facts["socket"])):
            done = self.stack.run("chat", *how, stdin="Swipe up please\n/tier\n/quit\n")
            self.assertIn('do(action="Swipe", start=[500,800], end=[500,200])', done.stdout)
            self.assertIn("edge, node edge", done.stdout)

    def test_a_long_text_through_shared_memory_rises_to_the_cloud(self):
        log = "".join(f"{hour:02}:{minute:02} furnace flow {minute + 0.5} l\n" for hour in range(6, 11) for minute in range(0, 60, 2))
        done = self.stack.run("chat", "--local", "--socket", self.stack["edge"].facts["socket"], "-p", log + "What was the flow at 07:10?")
        self.assertTrue(done.stdout.strip())
        self.assertEqual(self.stack.run("chat", "--local", "--socket", self.stack["edge"].facts["socket"],
                                        stdin=" ".join(log.split("\n")) + "\n/tier\n").stdout.count("cloud, node cloud"), 1)

    def test_local_clients_killed_at_any_moment_leave_nothing_behind(self):
        edge = self.stack["edge"]
        prompt = "log 12:00 pump 7 bar\n" * 40000  # 840 KB in shared memory
        for delay_ms in (0, 2, 5, 10, 20, 40):
            client = subprocess.Popen([str(PROGRAM), "chat", "--local", "--socket", edge.facts["socket"]], stdin=subprocess.PIPE,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.stack.env)
            try:
                client.stdin.write((" ".join(prompt.split("\n")) + "\n").encode())
                client.stdin.flush()
            except BrokenPipeError:
                pass
            time.sleep(delay_ms / 1000)
            client.kill()
            client.stdin.close()
            client.wait()
        wait_until(lambda: edge.metric("updraft_local_sessions") == 0 and edge.metric("updraft_local_mapped_bytes") == 0
                   and edge.metric_sum("updraft_edge_requests_in_flight") == 0 and edge.metric_sum("vllm:kv_cache_usage_perc") == 0,
                   5, "no session, no mapped byte, no request, no page")
        done = self.stack.run("chat", "--local", "--socket", edge.facts["socket"], "-p", "Swipe up please")
        self.assertTrue(done.stdout.strip())

    def test_a_script_sees_a_failed_question_in_the_exit_status(self):
        url = f"http://127.0.0.1:{self.router.port}/v1"
        done = self.stack.run("chat", "--url", url, stdin="log 12:00 pump 7 bar " * 3000 + "\n", check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("4096", done.stderr)

    def test_no_server_is_one_clear_line(self):
        done = updraft("chat", "--url", "http://127.0.0.1:1/v1", "-p", "x")
        self.assertEqual(done.returncode, 1)
        self.assertIn("updraft up", done.stderr)


class EndlessServer(http.server.BaseHTTPRequestHandler):
    """An endpoint whose answers never end by themselves."""

    left = threading.Event()  # a client went away in the middle of an answer

    def do_GET(self):
        self.send(json.dumps({"data": [{"id": "endless"}]}).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for number in range(2000):
                chunk = {"choices": [{"index": 0, "delta": {"content": f"w{number} "}}]}
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                time.sleep(0.02)
        except OSError:
            EndlessServer.left.set()

    def send(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class ChatInATerminal(unittest.TestCase):
    def test_ctrl_c_stops_the_answer_and_then_the_program(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), EndlessServer)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        child, terminal = pty.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores it
            os.execv(PROGRAM, [str(PROGRAM), "chat", "--url", f"http://127.0.0.1:{server.server_address[1]}/v1"])
        self.addCleanup(os.close, terminal)
        seen = b""

        def wait_for(text):
            nonlocal seen
            deadline = time.monotonic() + 20
            while text not in seen:
                self.assertGreater(deadline, time.monotonic(), seen)
                if select.select([terminal], [], [], 0.1)[0]:
                    seen += os.read(terminal, 4096)
            seen = seen[seen.index(text) + len(text):]

        try:
            wait_for(b"> ")
            for _ in range(2):  # the conversation goes on after it
                os.write(terminal, b"hello\n")
                wait_for(b"w3 ")
                os.write(terminal, b"\x03")
                wait_for(b"> ")
                self.assertTrue(EndlessServer.left.wait(10))
                EndlessServer.left.clear()
            os.write(terminal, b"\x03")
            done, status = wait_until(lambda: (lambda d: d if d[0] else None)(os.waitpid(child, os.WNOHANG)), what="the chat's end")
            self.assertEqual(done, child)
            self.assertEqual(os.waitstatus_to_exitcode(status), -signal.SIGINT)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise


class Up(unittest.TestCase):
    def test_smoke(self):
        done = updraft("up", "--smoke")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("smoke test passed", done.stdout)

    def test_smoke_with_models_of_ones_own(self):
        done = updraft("up", "--smoke", "--edge-model", EDGE_MODEL, "--cloud-model", CLOUD_MODEL)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("smoke test passed", done.stdout)

    def test_a_missing_model_and_a_taken_port_are_one_line(self):
        done = updraft("up", "--smoke", "--edge-model", "/nonexistent.gguf")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nonexistent.gguf", done.stderr)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            done = updraft("up", "--smoke", "--port", port)
            self.assertEqual(done.returncode, 1)
            self.assertIn(str(port), done.stderr)

    def test_it_stays_up_until_interrupted_and_leaves_nothing_running(self):
        import re
        with tempfile.TemporaryDirectory() as folder:
            output = open(os.path.join(folder, "out"), "w+b")
            process = subprocess.Popen([str(PROGRAM), "up", "--port", "0", "--state", folder + "/state"], stdout=output, stderr=output,
                                       env={**os.environ, "XDG_RUNTIME_DIR": folder})
            try:
                text = wait_until(lambda: (lambda t: t if "Ctrl-C stops everything" in t else None)(open(output.name).read()), 60, "the invitation")
                self.assertRegex(text, r"Endpoint: http://127\.0\.0\.1:\d+/v1")
                self.assertIn("curl http", text)
                ports = [int(p) for p in re.findall(r"ready +http://127\.0\.0\.1:(\d+)", text)]
                self.assertEqual(len(ports), 3)
            finally:
                process.send_signal(signal.SIGINT)
                status = process.wait(30)
                output.close()
            self.assertEqual(status, 0)
            for port in ports:
                with socket.socket() as probe:
                    self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0)


if __name__ == "__main__":
    unittest.main()
