"""The edge daemon with a listening socket that somebody else made: systemd's protocol without systemd."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

from harness import EDGE_MODEL, PROGRAM, ROOT, START_TIMEOUT_S, wait_until

sys.path.insert(0, str(ROOT / "edge/client/python"))
os.environ.setdefault("UPDRAFT_CLIENT_LIBRARY", str(PROGRAM.parent.parent / "lib/libupdraft_client.so.1"))
import updraft  # noqa: E402


class SocketActivation(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="updraft-fds-"))
        self.path = self.folder / "edge.sock"
        self.children = []
        shutil.copy(ROOT / "configs/edge.toml", self.folder)

    def tearDown(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate()
        shutil.rmtree(self.folder)

    def listener(self, kind=socket.SOCK_SEQPACKET, path=None, listens=True):
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(str(path or self.path))
        if listens:
            made.listen(16)
        self.addCleanup(made.close)
        return made

    def start(self, listener, pid="$$", count=1, **settings):
        """A shell becomes the daemon, so that LISTEN_PID is its own."""
        values = {"local.socket": self.path, "model.path": EDGE_MODEL, "http.port": 0, "pool.routers": "", **settings}
        flags = " ".join(f"--set {key}={str(value)!r}" for key, value in values.items())
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = (f"exec 3<&{listener.fileno()}; export LISTEN_PID={pid} LISTEN_FDS={count}; "
                   f"exec {PROGRAM} edge --config {self.folder}/edge.toml --ready-file {ready} {flags}")
        child = subprocess.Popen(["bash", "-c", command], pass_fds=[listener.fileno()], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(self.folder)})
        self.children.append(child)
        return child

    def wait_ready(self, child):
        wait_until(lambda: (self.folder / "ready").exists() or child.poll() is not None, START_TIMEOUT_S, "the daemon")
        self.assertIsNone(child.poll())

    def refusal(self, *arguments, **more):
        child = self.start(*arguments, **more)
        _, errors = child.communicate(timeout=START_TIMEOUT_S)
        self.assertNotEqual(child.returncode, 0)
        return errors

    def ask(self):
        with updraft.Session(self.path) as session:
            return session.chat("Go back.", max_tokens=40, temperature=0).result().text

    def test_clients_are_served_through_an_inherited_socket_which_stays(self):
        listener = self.listener()
        child = self.start(listener)
        self.wait_ready(child)
        answer = self.ask()
        self.assertTrue(answer)
        child.terminate()
        self.assertEqual(child.wait(30), 0)
        # The file is its maker's: the next daemon takes the same socket, and who connects meanwhile waits.
        self.assertTrue(self.path.exists())
        again = self.start(listener)
        self.wait_ready(again)
        self.assertEqual(self.ask(), answer)

    def test_a_daemon_that_finds_another_leaves_that_ones_socket_alone(self):
        listener = self.listener()
        self.assertIn("already listening", self.refusal(listener, pid=1))
        self.assertTrue(self.path.exists())

    def test_variables_for_another_process_are_ignored(self):
        listener = self.listener(path=self.folder / "other.sock")
        child = self.start(listener, pid=1)
        self.wait_ready(child)
        self.assertTrue(self.ask())
        child.terminate()
        self.assertEqual(child.wait(30), 0)
        self.assertFalse(self.path.exists())  # its own socket: gone with it

    def test_what_is_not_the_handoff_socket_is_refused(self):
        self.assertIn("SOCK_SEQPACKET", self.refusal(self.listener(kind=socket.SOCK_STREAM)))
        self.path.unlink()  # a refused socket's file is left to its maker
        self.assertIn("SOCK_SEQPACKET", self.refusal(self.listener(listens=False)))
        self.path.unlink()
        elsewhere = self.folder / "elsewhere.sock"
        errors = self.refusal(self.listener(path=elsewhere))
        self.assertIn(str(elsewhere), errors)
        self.assertIn(str(self.path), errors)
        self.assertIn("LISTEN_FDS = 2", self.refusal(self.listener(), count=2))

    def test_the_units_are_ones_that_systemd_reads(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("systemd-analyze is not installed")
        units = self.folder / "units"
        shutil.copytree(ROOT / "configs/deploy/systemd", units)
        service = units / "updraft-edge.service"
        service.write_text(service.read_text().replace("/usr/bin/updraft", str(PROGRAM)))
        done = subprocess.run(["systemd-analyze", "verify", str(units / "updraft-edge.socket"), str(service)],
                              capture_output=True, text=True, timeout=60)
        ours = [line for line in done.stderr.splitlines() if "updraft" in line]
        self.assertEqual(ours, [], done.stderr)
