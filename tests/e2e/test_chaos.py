"""Routers and nodes as real processes under load while nodes are killed, stopped, cut off and restarted.

A ledger of all requests shows that each one ended exactly once: with its whole answer, with a typed error, or with its
connection when the router itself was killed. Afterwards everything is back where it was: nodes, memory, descriptors, pages.

    python tests/e2e/test_chaos.py --minutes 30     two routers, killed as well
"""

import argparse
import collections
import http.client
import json
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time
import unittest

from harness import Daemon, Stack, chat, wait_until

NODES = ("edge", "cloud", "cloud-2")
CLIENTS = 6


class Relay:
    """A TCP relay in front of a router's pool port: lets bytes through, holds them, or breaks all connections."""

    def __init__(self, endpoint):
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.endpoint = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.pairs = {}
        self.waiting = {}  # socket -> bytes that it has not taken
        self.held = False
        self.broken = False
        self.stopping = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def hold(self, held):
        self.held = held

    def break_connections(self):
        self.broken = True

    def close(self):
        self.stopping = True
        self.thread.join()

    def forget(self, end):
        for one in (end, self.pairs.pop(end, None)):
            if one is None:
                continue
            self.pairs.pop(one, None)
            self.waiting.pop(one, None)
            try:
                self.selector.unregister(one)
            except (KeyError, ValueError):
                pass
            one.close()

    def accept(self):
        try:
            near, _ = self.listener.accept()
        except BlockingIOError:
            return
        try:
            far = socket.create_connection(self.target, 1)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setblocking(False)
            self.pairs[one] = other
            self.waiting[one] = b""
            self.selector.register(one, selectors.EVENT_READ)

    def move(self, end):
        other = self.pairs[end]
        if len(self.waiting[other]) > 1 << 20:
            return
        try:
            data = end.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.forget(end)
            return
        self.waiting[other] += data

    def push(self, end):
        if not self.waiting[end]:
            return
        try:
            sent = end.send(self.waiting[end])
        except BlockingIOError:
            return
        except OSError:
            self.forget(end)
            return
        self.waiting[end] = self.waiting[end][sent:]

    def run(self):
        while not self.stopping:
            if self.broken:
                self.broken = False
                for end in list(self.pairs):
                    if end in self.pairs:
                        self.forget(end)
            if self.held:
                time.sleep(0.02)
                continue
            for key, _ in self.selector.select(0.02):
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj in self.pairs:
                    self.move(key.fileobj)
            for end in list(self.waiting):
                if end in self.waiting:
                    self.push(end)
        for end in list(self.pairs):
            if end in self.pairs:
                self.forget(end)
        self.listener.close()


class Ledger:
    """What became of each request. `kills` are the times at which a router was killed."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ends = collections.Counter()
        self.problems = []
        self.kills = collections.defaultdict(list)

    def end(self, how):
        with self.lock:
            self.ends[how] += 1

    def problem(self, what):
        with self.lock:
            self.problems.append(what)

    def lost(self, router, began, why):
        """The connection broke without an end: right only if the router was killed meanwhile."""
        with self.lock:
            killed = any(began - 1 <= at for at in self.kills[router])
        if killed:
            self.end("router killed")
        else:
            self.problem(f"a request to {router} lost its connection: {why}")


class Client(threading.Thread):
    """Asks one thing after the other; every answer is checked to its end."""

    def __init__(self, world, seed):
        super().__init__()
        self.world = world
        self.random = random.Random(seed)

    def run(self):
        while not self.world.stopping.is_set():
            self.ask()
            time.sleep(self.random.uniform(0, 0.1))

    def ask(self):
        name = self.random.choice(self.world.routers)
        daemon = self.world.stack.daemons[name]
        stream = self.random.random() < 0.7
        text = self.random.choice(["Go back.", "Open the settings.", "Hi " * self.random.randint(1, 60)])
        body = chat(text, stream=stream, max_tokens=self.random.choice([3, 20, 100]), temperature=1.0,
                    ignore_eos=self.random.random() < 0.5)
        headers = {"Content-Type": "application/json"}
        if self.random.random() < 0.3:
            headers["x-updraft-tier"] = self.random.choice(["edge", "cloud"])
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=90)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
        except ConnectionRefusedError:
            time.sleep(0.1)  # nobody took it
            return
        except OSError as error:
            self.world.ledger.lost(name, began, repr(error))
            return
        except http.client.HTTPException as error:
            self.world.ledger.lost(name, began, repr(error))
            return
        try:
            if response.status != 200:
                error = json.loads(response.read())["error"]
                if not error["message"] or response.status not in (429, 499, 502, 503, 504):
                    self.world.ledger.problem(f"status {response.status}: {error}")
                self.world.ledger.end(f"error {response.status}")
            elif stream:
                self.read_stream(name, began, response)
            else:
                answer = json.loads(response.read())
                if answer["choices"][0]["finish_reason"] not in ("stop", "length"):
                    self.world.ledger.problem(f"an answer without an end: {answer}")
                self.world.ledger.end("whole")
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.world.ledger.lost(name, began, repr(error))
        finally:
            connection.close()

    def read_stream(self, name, began, response):
        leaves_after = self.random.randint(1, 30) if self.random.random() < 0.15 else None
        finish, error, done, count = None, None, 0, 0
        while line := response.readline():
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if done or error is not None:
                self.world.ledger.problem(f"data after the end: {data[:200]}")
            if data == b"[DONE]":
                done += 1
                continue
            value = json.loads(data)
            if "error" in value:
                error = value["error"]
                continue
            count += 1
            for choice in value["choices"]:
                if finish is not None and (choice.get("finish_reason") or choice["delta"].get("content")):
                    self.world.ledger.problem("text after the finish")
                finish = choice.get("finish_reason") or finish
            if count == leaves_after:
                self.world.ledger.end("client left")
                return
        if error is not None:
            self.world.ledger.end(f"error in the stream")
        elif done == 1 and finish is not None:
            self.world.ledger.end("whole")
        else:
            self.world.ledger.lost(name, began, f"{count} pieces, finish {finish}, [DONE] {done} times")


class World:
    """Routers, nodes behind relays, and the hand that breaks them."""

    def __init__(self, router_count, seed):
        self.random = random.Random(seed)
        self.stack = Stack(NODES)
        self.routers = []
        self.relays = {}  # (node, router)
        self.ledger = Ledger()
        self.stopping = threading.Event()
        self.ports = {}
        try:
            for i in range(router_count):
                self.start_router("router" if i == 0 else f"router-{i + 1}")
            for node in NODES:
                for router in self.routers:
                    self.relays[node, router] = Relay(self.stack[router].facts["pool"])
                self.start_node(node, wait=False)
            for node in NODES:
                self.stack[node].wait_ready()
            self.wait_whole()
        except BaseException:
            self.close()
            raise

    def start_router(self, name):
        folder = self.stack.folder
        settings = {"router.id": name, "http.port": self.ports.get((name, "http"), 0),
                    "pool.listen": self.ports.get((name, "pool"), "tcp://127.0.0.1:0"), "pool.key": folder / "keys/router",
                    "pool.nodes": folder / "keys/nodes"}
        self.stack.daemons[name] = Daemon(self.stack, name, "router", settings)
        self.stack[name].wait_ready()
        self.ports[name, "http"] = self.stack[name].port
        self.ports[name, "pool"] = self.stack[name].facts["pool"]
        if name not in self.routers:
            self.routers.append(name)

    def start_node(self, node, wait=True):
        routers = ",".join(self.relays[node, router].endpoint for router in self.routers)
        self.stack.start_node("edge" if node == "edge" else "cloud", node, wait=False, **{"pool__routers": routers})
        if wait:
            self.stack[node].wait_ready()

    def fresh(self, router):
        return sum(self.stack[router].metric("updraft_router_nodes", {"state": "fresh", "tier": tier}) or 0
                   for tier in ("edge", "cloud"))

    def wait_whole(self):
        for router in self.routers:
            wait_until(lambda: self.fresh(router) == len(NODES), 60, f"{router} to see {len(NODES)} fresh nodes")

    def strike(self, with_routers):
        node = self.random.choice(NODES)
        daemon = self.stack[node]
        kind = self.random.choice(["kill", "stop", "hold", "break", "drain"] + (["router"] if with_routers else []))
        pause = self.random.uniform(0.2, 4.0)
        if kind == "kill":
            daemon.kill()
            self.start_node(node)
        elif kind == "stop":
            daemon.process.send_signal(signal.SIGSTOP)
            self.stopping.wait(pause)
            daemon.process.send_signal(signal.SIGCONT)
        elif kind == "hold":
            relay = self.relays[node, self.random.choice(self.routers)]
            relay.hold(True)
            self.stopping.wait(pause)
            relay.hold(False)
        elif kind == "break":
            self.relays[node, self.random.choice(self.routers)].break_connections()
        elif kind == "drain":
            daemon.stop(60)
            self.start_node(node)
        else:
            router = self.random.choice(self.routers)
            with self.ledger.lock:
                self.ledger.kills[router].append(time.monotonic())
            self.stack[router].kill()
            with self.ledger.lock:
                self.ledger.kills[router].append(time.monotonic())
            self.start_router(router)
        return kind

    def close(self):
        self.stopping.set()
        for daemon in self.stack.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGCONT)
        for relay in self.relays.values():
            relay.close()
        self.stack.close()

    def resources(self, name):
        pid = self.stack[name].process.pid
        with open(f"/proc/{pid}/statm") as statm:
            resident_mib = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "resident_mib": resident_mib}


def run_chaos(seconds, router_count, seed, report=lambda text: None):
    """Breaks things for so long; returns the ledger. Raises AssertionError when something is not as it was afterwards."""
    world = World(router_count, seed)
    try:
        clients = [Client(world, seed * 100 + i) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(min(5.0, seconds / 5))  # the first requests make pools and buffers
        before = {name: world.resources(name) for name in world.routers}
        deadline = time.monotonic() + seconds
        strikes = collections.Counter()
        said = time.monotonic()
        while time.monotonic() < deadline:
            strikes[world.strike(router_count > 1)] += 1
            time.sleep(world.random.uniform(0.1, 1.0))
            if time.monotonic() - said > 30:
                said = time.monotonic()
                report(f"{deadline - said:.0f} s left, {dict(strikes)}, {dict(world.ledger.ends)}")
        for relay in world.relays.values():
            relay.hold(False)
        world.wait_whole()
        world.stopping.set()
        for client in clients:
            client.join(120)
            if client.is_alive():
                world.ledger.problem("a request has no end two minutes after everything healed")
        for router in world.routers:
            daemon = world.stack[router]
            for tier in ("edge", "cloud"):
                answer = wait_until(lambda: (lambda a: a if a.status == 200 else None)(
                    daemon.post("/v1/chat/completions", chat("Go back.", max_tokens=5), {"x-updraft-tier": tier})), 30,
                    f"an answer of the {tier} through {router}")
                assert answer.json()["choices"][0]["finish_reason"]
        for node in NODES:
            wait_until(lambda: world.stack[node].metric("vllm:kv_cache_usage_perc") == 0, 30, f"{node}'s pages to be free")
            wait_until(lambda: world.stack[node].metric("vllm:num_requests_running") == 0, 30, f"{node} to be idle")
        for router in world.routers:
            limit = before[router]["descriptors"] + 8
            wait_until(lambda: world.resources(router)["descriptors"] <= limit, 60, f"{router}'s descriptors to be at most {limit}")
            after = world.resources(router)
            grown = after["resident_mib"] - before[router]["resident_mib"]
            report(f"{router}: before {before[router]}, after {after}")
            assert grown < 64, f"{router} has grown by {grown:.0f} MiB"
        report(f"{dict(strikes)}; {dict(world.ledger.ends)}")
        return world.ledger
    finally:
        world.close()


class Chaos(unittest.TestCase):
    def test_every_request_ends_once_whatever_happens_to_the_nodes(self):
        ledger = run_chaos(20, 1, seed=1)
        self.assertEqual(ledger.problems, [])
        self.assertGreater(ledger.ends["whole"], 20, ledger.ends)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--routers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    ledger = run_chaos(arguments.minutes * 60, arguments.routers, arguments.seed, lambda text: print(text, flush=True))
    for problem in ledger.problems:
        print("PROBLEM", problem)
    return 1 if ledger.problems else 0


if __name__ == "__main__":
    if "--minutes" in sys.argv:
        sys.exit(main())
    unittest.main()
