"""Starts router, edge and cloud as real processes on free ports, with keys of their own, and talks HTTP to them.

Every wait is for an event with a deadline. Whatever a test starts ends with it.
"""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("UPDRAFT_PROGRAM", ROOT / "build/bin/updraft"))
MODELS = ROOT / "configs/models"
EDGE_MODEL = MODELS / "updraft-demo-edge-q4_0.gguf"
CLOUD_MODEL = MODELS / "updraft-demo-cloud-q8_0.gguf"
ROGUE_NODE = PROGRAM.parent.parent / "tests/rogue_node"
SHARED_DATA = pathlib.Path(os.environ.get("UPDRAFT_SHARED_DATA", ROOT.parent / "shared/data"))
START_TIMEOUT_S = 60

sys.path.insert(0, str(ROOT / "tools/train"))  # the conversations' generator and the evaluation


def wait_until(condition, timeout_s=10.0, what="the condition"):
    """Polls until condition() is true and returns its value; fails naming `what`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.01)


class Answer:
    """An HTTP answer: status, headers (lower case), body, and the body as JSON."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]


class Daemon:
    """One running `updraft router|edge|cloud`."""

    def __init__(self, stack, name, kind, settings, env=None):
        self.name, self.kind, self.stack = name, kind, stack
        self.ready_file = stack.folder / f"{name}.ready"
        self.log_path = stack.folder / f"{name}.log"
        self.ready_file.unlink(missing_ok=True)
        if name in stack.daemons:
            stack.daemons[name].log.close()
        command = [str(PROGRAM), kind, "--config", str(stack.folder / f"{kind}.toml"), "--ready-file", str(self.ready_file)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.log = open(self.log_path, "ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
                                        env=env or stack.env)
        self.facts = {}

    def wait_ready(self):
        def written():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}: {self.log_text()[-2000:]}")
            return self.ready_file.exists()

        wait_until(written, START_TIMEOUT_S, f"{self.name}'s ready file")
        self.facts = dict(line.split("=", 1) for line in self.ready_file.read_text().splitlines())
        return self

    @property
    def port(self):
        return int(self.facts["http_port"])

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def get(self, path, headers=None, timeout=30):
        return self.request("GET", path, None, headers, timeout)

    def request(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def post(self, path, value, headers=None, timeout=60):
        body = value if isinstance(value, (bytes, str)) else json.dumps(value)
        return self.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})}, timeout)

    def stream(self, path, value, headers=None, timeout=60):
        """Posts and yields the data of each event; .headers and .status on the returned object."""
        return EventStream(self.port, path, value, headers, timeout)

    def metric(self, name, labels=None):
        """The value of one series of /metrics, None when absent."""
        for line in self.get("/metrics", self.stack.authorization()).body.decode().splitlines():
            if line.startswith("#") or not line.startswith(name):
                continue
            series, value = line.rsplit(" ", 1)
            rest = series[len(name):]
            if rest and rest[0] != "{":
                continue
            if all(f'{k}="{v}"' in rest for k, v in (labels or {}).items()):
                return float(value)
        return None

    def metric_sum(self, name):
        total = 0.0
        for line in self.get("/metrics", self.stack.authorization()).body.decode().splitlines():
            if line.startswith(name) and line[len(name)] in "{ ":
                total += float(line.rsplit(" ", 1)[1])
        return total

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    def stop(self, timeout=20):
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} did not stop within {timeout} s")
        finally:
            self.log.close()


class EventStream:
    def __init__(self, port, path, value, headers, timeout):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.connection.request("POST", path, body=json.dumps(value), headers={"Content-Type": "application/json", **(headers or {})})
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.headers = {k.lower(): v for k, v in self.response.getheaders()}

    def __iter__(self):
        while True:
            line = self.response.readline()
            if not line:
                return
            if line.startswith(b"data: "):
                yield line[6:].strip().decode()

    def close(self):
        # Shut the socket down, so that the server sees the client leave even though `response` holds the file.
        if self.connection.sock is not None:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.response.close()
        self.connection.close()


class Rogue:
    """A running rogue_node (tests/e2e/rogue_node.cpp): steps in, lines out."""

    def __init__(self, stack, key, *steps, router_key="router", endpoint=None):
        keys = stack.folder / "keys"
        self.process = subprocess.Popen(
            [str(ROGUE_NODE), endpoint or stack["router"].facts["pool"], str(keys / f"{router_key}.pub"), str(keys / key), *steps],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(line.rstrip("\n") for line in self.process.stdout))
        self.reader.start()

    def said(self, beginning):
        return [line for line in list(self.lines) if line.startswith(beginning)]

    def wait_for(self, beginning, timeout_s=10):
        return wait_until(lambda: self.said(beginning), timeout_s, f"a line '{beginning}...' of the rogue (so far: {self.lines})")[0]

    def finish(self, timeout_s=60):
        """Waits until all steps are done; any other end fails."""
        status = self.process.wait(timeout_s)
        self.stop()
        if status != 0:
            raise AssertionError(f"rogue_node ended with {status}: {self.lines[-5:]}")
        return self

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.reader.join()
        self.process.stdout.close()


class Stack:
    """A folder with keys and configurations, and the daemons started in it."""

    def __init__(self, nodes=("edge", "cloud")):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="updraft-e2e-"))
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder / "run")}
        (self.folder / "run").mkdir(mode=0o700)
        self.daemons = {}
        self.api_key = None
        self.new_key("router")
        (self.folder / "keys/nodes").mkdir(parents=True)
        for name in nodes:
            self.allow(name)
        for kind in ("router", "edge", "cloud"):
            shutil.copy(ROOT / f"configs/{kind}.toml", self.folder / f"{kind}.toml")

    def run(self, *arguments, timeout=60, check=True, stdin=None):
        """Runs `updraft ...` to its end."""
        done = subprocess.run([str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, env=self.env, input=stdin)
        if check and done.returncode != 0:
            raise AssertionError(f"updraft {' '.join(map(str, arguments))}: {done.returncode}: {done.stderr}")
        return done

    def new_key(self, name):
        (self.folder / "keys").mkdir(exist_ok=True, mode=0o700)
        self.run("keys", "new", self.folder / "keys" / name)

    def allow(self, name):
        self.new_key(name)
        allowed = self.run("keys", "allow", self.folder / f"keys/{name}.pub", self.folder / "keys/nodes")
        if not (self.folder / f"keys/nodes/{name}.pub").exists():
            raise AssertionError(f"keys allow did not make {name}.pub: {allowed.stdout}")

    def start_router(self, **settings):
        values = {"http.port": 0, "pool.listen": "tcp://127.0.0.1:0", "pool.key": self.folder / "keys/router",
                  "pool.nodes": self.folder / "keys/nodes"}
        values.update({k.replace("__", "."): v for k, v in settings.items()})
        self.daemons["router"] = Daemon(self, "router", "router", values)
        return self.daemons["router"].wait_ready()

    def start_node(self, kind, name=None, model=None, wait=True, **settings):
        name = name or kind
        values = {"node.id": name, "model.path": model or (EDGE_MODEL if kind == "edge" else CLOUD_MODEL), "http.port": 0,
                  "pool.routers": self.daemons["router"].facts["pool"] if "router" in self.daemons else "",
                  "pool.router_key": self.folder / "keys/router.pub", "pool.key": self.folder / f"keys/{name}"}
        if kind == "edge":
            values["local.socket"] = self.folder / f"run/{name}.sock"
        values.update({k.replace("__", "."): v for k, v in settings.items()})
        self.daemons[name] = Daemon(self, name, kind, values)
        if wait:
            self.daemons[name].wait_ready()
            self.wait_serving(name)
        return self.daemons[name]

    def wait_serving(self, name):
        wait_until(lambda: self.daemons[name].get("/readyz").status == 200, START_TIMEOUT_S, f"{name}'s /readyz")

    def start_all(self, **router_settings):
        self.start_router(**router_settings)
        self.start_node("edge", wait=False)
        self.start_node("cloud", wait=False)
        for name in ("edge", "cloud"):
            self.daemons[name].wait_ready()
            self.wait_serving(name)
        self.wait_serving("router")
        # A router that has just started answers 503 for a model it has not heard of yet; wait until it is sure.
        wait_until(lambda: self["router"].post("/v1/chat/completions", {"model": "?", "messages": [{"role": "user", "content": "x"}]},
                                               self.authorization()).status == 404, what="the router to know its pool")
        return self

    @contextlib.contextmanager
    def clock(self, offset):
        """Daemons that start in here have a wall clock that is wrong by `offset` ("+400d"); needs faketime."""
        right = self.env
        library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        self.env = {**right, "LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        try:
            yield
        finally:
            self.env = right

    def authorization(self):
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def __getitem__(self, name):
        return self.daemons[name]

    def close(self):
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class StackTest(unittest.TestCase):
    """One stack for all tests of the class."""

    nodes = ("edge", "cloud")  # names whose keys are on the allow-list

    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(cls.nodes)
        try:
            cls.stack.start_all()
        except BaseException:
            cls.stack.close()
            raise
        cls.router = cls.stack["router"]

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()


def chat(content, **more):
    return {"model": "updraft-demo", "temperature": 0, "messages": [{"role": "user", "content": content}], **more}


def long_conversation(seed=11):
    """A held-out log of the demo's second task, far over the edge's context."""
    import conversations

    return max(conversations.held_out("logs", 5, seed), key=lambda c: len(c.turns[-1].user))
