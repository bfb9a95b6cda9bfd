"""Two routers and three nodes as real processes under load, while everything happens to them that happens in production.

Nodes and a router are killed, stopped, drained; links are cut both ways or one way, lose bytes, delay them, break; clocks
jump; disks fill up. A ledger shows that each request ended exactly once: whole, with a typed error, or left by its client.
Requests whose router was killed are asked again at the other one under the same Idempotency-Key. Afterwards everything
is back where it was: nodes, memory, descriptors, slots, pages, streams.

    python tests/e2e/test_chaos.py --minutes 30
"""

import argparse
import collections
import hashlib
import http.client
import os
import random
import re
import signal
import sys
import threading
import time
import unittest

from chaos_clients import Client, Ledger
from chaos_faults import Clock, Disk, LogFile
from harness import CLOUD_MODEL, EDGE_MODEL, PROGRAM, Daemon, Stack, chat, wait_until
from pool_relay import HOLD, LOSE, Relay

ROUTERS = ("router", "router-2")
NODES = ("edge", "cloud", "cloud-2")
# These are never killed, so that a leak shows; the others only in the first half of the time, for the same reason.
SPARED = ("router", "cloud")
TENANTS = {"red-key": "developer", "blue-key": "developer", "boss-key": "admin"}
CLIENTS = 6
CLOCK_JUMPS_S = (-86400 * 30, -3600, -7, 7, 3600, 86400 * 400)
HEAL_S = 90
# So few that the warm-up touches all KV memory: what grows later is no page seen for the first time.
KV_TOKENS = 4096


class World:
    """Routers, nodes behind relays, and the hand that breaks them."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.stack = Stack(NODES)
        self.stack.api_key = "boss-key"
        self.routers = []
        self.relays = {}  # (node, router)
        self.ledger = Ledger()
        self.stopping, self.paused = threading.Event(), threading.Event()
        self.killing = True  # of those that are not spared
        self.fixed = {}  # settings of a router that its next life keeps
        self.ports = {}
        self.pids = []
        self.busy = {name: threading.Lock() for name in ROUTERS + NODES}  # one fault at a time each
        self.baselines = {}  # (daemon, pid) -> resources
        self.clients = []
        self.clocks, self.disks, self.logs, self.audits = {}, {}, {}, {}
        clocks = Clock.possible(PROGRAM)
        keys = self.stack.folder / "keys/api-keys"
        keys.write_text("".join(f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {key} role={role}\n"
                                for key, role in TENANTS.items()))
        keys.chmod(0o600)
        try:
            for name in ROUTERS + NODES:
                self.disks[name] = Disk(self.stack.folder / "disks" / name)
                self.logs[name] = LogFile(self.disks[name].folder / "log.jsonl")
                if clocks:
                    self.clocks[name] = Clock(self.stack.folder / f"{name}.clock")
            for name in ROUTERS:
                self.audits[name] = LogFile(self.disks[name].folder / "audit.jsonl")
                self.start_router(name)
            for node in NODES:
                for router in ROUTERS:
                    self.relays[node, router] = Relay(self.stack[router].facts["pool"])
                self.start_node(node, wait=False)
            for node in NODES:
                self.stack[node].wait_ready()
            self.wait_whole()
        except BaseException:
            self.close()
            raise
        self.faults = {"kill": self.kill, "stop": self.stop, "drain": self.drain, "cut both ways": self.cut,
                       "cut one way": self.cut_one_way, "lose": self.lose, "delay": self.delay, "break": self.break_link,
                       "full disk": self.fill_disk, "kill router": self.kill_router}
        if clocks:
            self.faults["clock jump"] = self.jump

    def start(self, name, kind, settings):
        settings = {"log.file": self.logs[name].path, "log.format": "json", **settings}
        env = {**self.stack.env, **(self.clocks[name].environment() if name in self.clocks else {})}
        self.stack.daemons[name] = Daemon(self.stack, name, kind, settings, env)
        self.pids.append(self.stack[name].process.pid)

    def start_router(self, name):
        folder = self.stack.folder
        ports = self.ports.get(name, {"http.port": 0, "admin.port": 0, "pool.listen": "tcp://127.0.0.1:0"})
        self.start(name, "router", {"router.id": name, "pool.key": folder / "keys/router", "pool.nodes": folder / "keys/nodes",
                                    "http.api_keys_file": folder / "keys/api-keys", "admin.audit_file": self.audits[name].path,
                                    "http.idempotency_bytes_max": "4 MiB", **ports})
        facts = self.stack[name].wait_ready().facts
        self.ports[name] = {"http.port": facts["http_port"], "admin.port": facts["admin_port"], "pool.listen": facts["pool"]}
        if name not in self.routers:
            self.routers.append(name)

    def http_port(self, router):
        return int(self.ports[router]["http.port"])

    def start_node(self, node, wait=True):
        kind, folder = ("edge" if node == "edge" else "cloud"), self.stack.folder
        settings = {"node.id": node, "model.path": EDGE_MODEL if kind == "edge" else CLOUD_MODEL, "http.port": 0,
                    "pool.routers": ",".join(self.relays[node, router].endpoint for router in ROUTERS),
                    "pool.router_key": folder / "keys/router.pub", "pool.key": folder / f"keys/{node}",
                    "model.kv_tokens": KV_TOKENS}
        if kind == "edge":
            settings["local.socket"] = folder / f"run/{node}.sock"
        self.start(node, kind, settings)
        if wait:
            self.stack[node].wait_ready()

    def fresh(self, router):
        return sum(self.stack[router].metric("updraft_router_nodes", {"state": "fresh", "tier": tier}) or 0
                   for tier in ("edge", "cloud"))

    def wait_whole(self):
        for router in ROUTERS:
            wait_until(lambda: self.fresh(router) == len(NODES), HEAL_S, f"{router} to see {len(NODES)} fresh nodes")

    # Faults: each takes the daemon that it strikes, and has ended when it returns.

    def pause(self, least_s=0.2, most_s=4.0):
        self.stopping.wait(self.random.uniform(least_s, most_s))

    def link(self, node):
        return self.relays[node, self.random.choice(ROUTERS)]

    def kill(self, node):
        self.stack[node].kill()
        self.start_node(node)

    def drain(self, node):
        assert self.stack[node].stop(60) == 0, f"{node} did not stop in order"
        self.start_node(node)

    def stop(self, name):
        process = self.stack[name].process
        process.send_signal(signal.SIGSTOP)
        self.pause()
        process.send_signal(signal.SIGCONT)

    def cut(self, node):
        relay = self.link(node)
        relay.fault(HOLD, HOLD)
        self.pause(0.2, 6.0)
        relay.heal()

    def cut_one_way(self, node):
        relay = self.link(node)
        relay.fault(*self.random.choice([("flow", HOLD), (HOLD, "flow")]))
        self.pause(0.2, 6.0)
        relay.heal()

    def lose(self, node):
        relay = self.link(node)
        relay.fault(*self.random.choice([("flow", LOSE), (LOSE, "flow"), (LOSE, LOSE)]))
        self.pause(0.2, 6.0)
        relay.heal()

    def delay(self, node):
        relay = self.link(node)
        relay.delay(self.random, 0.03, 0.1)
        self.pause(1.0, 6.0)
        relay.heal()

    def break_link(self, node):
        self.link(node).break_connections()

    def kill_router(self, router):
        self.ledger.kill(router)
        self.stack[router].kill()
        self.ledger.kill(router)
        self.pause(0.0, 2.0)
        self.start_router(router)

    def jump(self, name):
        """The time of day jumps, back after a while or not at all. A daemon killed meanwhile starts with the new time."""
        offset_s = self.random.choice(CLOCK_JUMPS_S)
        log = self.logs[name]
        self.read_log(name)
        seen = log.jumped_lines
        self.clocks[name].set(offset_s)
        self.stack[name].get("/livez")  # leaves a line in the log, with the new time
        if abs(offset_s) > log.JUMPED_S:
            wait_until(lambda: self.read_log(name) and log.jumped_lines > seen, 30, f"{name} to see its clock jump by {offset_s} s")
        self.pause()
        if self.random.random() < 0.7:
            self.clocks[name].set(0.0)

    def fill_disk(self, name):
        """Nothing can be logged for a while. The daemon serves on; afterwards its lines are whole again."""
        daemon, pid = self.stack[name], self.stack[name].process.pid
        self.disks[name].fill(pid)
        try:
            assert daemon.get("/livez").status == 200
            if name in ROUTERS:
                assert self.reload(name) == 200, "an administrator's act on a full disk"
            self.pause()
        finally:
            self.disks[name].free(pid)
        wait_until(lambda: daemon.get("/livez") and self.read_log(name), 30, f"{name} to log again")
        if name in ROUTERS:
            self.audits[name].read()
            assert self.reload(name) == 200
            lines = self.audits[name].read()
            assert lines and lines[-1]["act"] == "reload", f"{name}'s audit log after its disk was full: {lines} {self.audits[name].torn}"

    def reload(self, router):
        connection = http.client.HTTPConnection("127.0.0.1", int(self.ports[router]["admin.port"]), timeout=30)
        try:
            connection.request("POST", "/admin/reload", headers={"Authorization": "Bearer boss-key"})
            return connection.getresponse().status
        finally:
            connection.close()

    def read_log(self, name):
        return self.logs[name].read(cut=self.logs[name].at > 256 << 10)

    def targets(self, kind):
        """Whom this fault may strike now."""
        if kind == "kill router":
            return [name for name in ROUTERS if name not in SPARED] if self.killing else []
        if kind in ("kill", "drain"):
            return [name for name in NODES if name not in SPARED] if self.killing else []
        if kind in ("clock jump", "full disk"):
            return ROUTERS + NODES
        return NODES

    def strike(self, kind):
        """One fault of this kind on a daemon that no other hand strikes now; None where there is none."""
        targets = list(self.targets(kind))
        self.random.shuffle(targets)
        for name in targets:
            if self.busy[name].acquire(blocking=False):
                try:
                    self.faults[kind](name)
                    self.read_log(name)
                    return name
                finally:
                    self.busy[name].release()
        return None

    # What must be back at the end.

    def rest(self):
        """No client asks anything any more; every request has ended."""
        self.paused.set()
        for client in self.clients:
            if not client.resting.wait(180):
                self.ledger.problem("a request has no end three minutes after everything healed")
        for router in ROUTERS:
            for name in ("updraft_router_requests_running", "updraft_router_queue_depth", "updraft_open_streams"):
                wait_until(lambda: self.stack[router].metric(name) == 0, 60, f"{router}'s {name} to be 0")
        for node in NODES:
            for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
                wait_until(lambda: self.stack[node].metric(name) == 0, 60, f"{node}'s {name} to be 0")

    def resume(self):
        for client in self.clients:
            client.resting.clear()
        self.paused.clear()

    def resources(self, name):
        daemon = self.stack[name]
        pid = daemon.process.pid
        with open(f"/proc/{pid}/statm") as statm:
            resident_mib = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        found = {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": len(os.listdir(f"/proc/{pid}/task")),
                 "resident_mib": round(resident_mib, 1)}
        if name in NODES:
            found |= {"slots_free": daemon.metric("updraft_slots_free"), "kv_used": daemon.metric("vllm:kv_cache_usage_perc")}
        else:
            found |= {"streams": daemon.metric("updraft_open_streams"), "requests": daemon.metric("updraft_router_requests_running"),
                      "connections": daemon.metric("updraft_http_connections")}
        return found

    def take_baselines(self):
        """Of each life that has none yet. Everything is at rest."""
        for name in ROUTERS + NODES:
            self.baselines.setdefault((name, self.stack[name].process.pid), self.resources(name))

    def check_baselines(self, grown_mib_max, report):
        """Of each life that has one: back where it was. Returns how many those are."""
        lived = 0
        for name in ROUTERS + NODES:
            before = self.baselines.get((name, self.stack[name].process.pid))
            if before is None:
                report(f"{name}: killed since, now {self.resources(name)}")
                continue
            lived += 1
            for key in set(before) - {"resident_mib", "connections", "descriptors"}:
                wait_until(lambda: self.resources(name)[key] == before[key], 60, f"{name}'s {key} to be {before[key]} again")
            wait_until(lambda: self.resources(name)["descriptors"] <= before["descriptors"] + 2, 60,
                       f"{name}'s descriptors to be {before['descriptors']} again")
            after = self.resources(name)
            report(f"{name}: before {before}, after {after}")
            grown = after["resident_mib"] - before["resident_mib"]
            assert grown <= grown_mib_max, f"{name} has grown by {grown:.0f} MiB"
        return lived

    def check_books(self):
        """Every request that a router took in has ended there, once."""
        for router in ROUTERS:
            metrics = self.stack[router].get("/metrics", self.stack.authorization()).body.decode()

            def total(name):
                return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.MULTILINE))

            taken, ended = total("updraft_router_submitted_total"), total("updraft_router_requests_total")
            if taken != ended:
                self.ledger.problem(f"{router} took {taken:.0f} requests in and ended {ended:.0f}")

    def close(self):
        self.stopping.set()
        for daemon in self.stack.daemons.values():
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGCONT)
        for daemon in self.stack.daemons.values():
            daemon.kill()
        for relay in self.relays.values():
            relay.close()
        for disk in self.disks.values():
            disk.close()
        for pid in self.pids:
            Clock.forget(pid)
        self.stack.close()

    def last_words(self):
        """What helps to understand a failure."""
        texts = []
        for name in ROUTERS + NODES:
            if name in self.stack.daemons:
                status = self.stack[name].process.poll()
                texts.append(f"--- {name}, {'running' if status is None else f'ended with {status}'}\n" + self.stack[name].log_text()[-2000:])
                path = self.logs[name].path
                texts.append(path.read_text(errors="replace")[-2000:] if path.exists() else "")
        return "\n".join(texts)


class Hand(threading.Thread):
    """Strikes until told to stop: a shuffled deck of all kinds of faults, again and again."""

    def __init__(self, world, seed, strikes, until, decks_min):
        super().__init__(daemon=True)
        self.world, self.strikes, self.until, self.decks_min = world, strikes, until, decks_min
        self.random = random.Random(seed)
        self.error = None

    def run(self):
        try:
            decks = 0
            while decks < self.decks_min or time.monotonic() < self.until:
                deck = list(self.world.faults)
                self.random.shuffle(deck)
                for kind in deck:
                    if self.world.strike(kind):
                        self.strikes[kind] += 1
                    self.world.stopping.wait(self.random.uniform(0.1, 1.0))
                    if self.world.stopping.is_set() or (decks >= self.decks_min and time.monotonic() >= self.until):
                        return
                decks += 1
        except BaseException as error:
            self.error = error


def run_hands(world, count, seconds, decks_min, seed, strikes, report):
    until = time.monotonic() + seconds
    hands = [Hand(world, f"{seed} {i}", strikes, until, decks_min) for i in range(count)]
    for hand in hands:
        hand.start()
    said = time.monotonic()
    while any(hand.is_alive() for hand in hands):
        time.sleep(0.1)
        for hand in hands:
            if hand.error is not None:
                world.stopping.set()
                raise hand.error
        if time.monotonic() - said > 30:
            said = time.monotonic()
            report(f"{until - said:.0f} s left; {dict(strikes)}; {dict(world.ledger.ends)}; {dict(world.ledger.notes)}; "
                   f"{len(world.ledger.problems)} problems")
    for hand in hands:
        if hand.error is not None:
            raise hand.error
    for relay in world.relays.values():
        relay.heal()
    for clock in world.clocks.values():
        clock.set(0.0)
    world.wait_whole()


def answer_through_all(world):
    for router in ROUTERS:
        for tier in ("edge", "cloud"):
            answer = wait_until(lambda: (lambda a: a if a.status == 200 else None)(
                world.stack[router].post("/v1/chat/completions", chat("Go back.", max_tokens=5),
                                         {"x-updraft-tier": tier, **world.stack.authorization()})), 30,
                f"an answer of the {tier} through {router}")
            assert answer.json()["choices"][0]["finish_reason"]


def run_chaos(seconds, seed, hands=1, decks_min=1, warm_up_whole=30, grown_mib_max=32, report=lambda text: None):
    """Breaks things for so long, at least every kind once; returns (ledger, strikes, lives that were compared). Raises
    AssertionError when something is not as it was afterwards."""
    world = World(seed)
    strikes = collections.Counter()
    try:
        world.clients = [Client(world, seed * 100 + i, list(TENANTS)[i % 2]) for i in range(CLIENTS)]
        for client in world.clients:
            client.start()

        def warm_up():  # the first requests make pools and buffers
            whole = world.ledger.ends["whole"] + warm_up_whole
            wait_until(lambda: world.ledger.ends["whole"] >= whole, 120, f"{warm_up_whole} whole answers")

        def rest(take):
            world.rest()
            take()

        warm_up()
        rest(world.take_baselines)
        world.resume()
        run_hands(world, hands, seconds / 2, decks_min, f"{seed} first", strikes, report)
        world.killing = False
        warm_up()
        rest(world.take_baselines)
        world.resume()
        run_hands(world, hands, seconds / 2, 0, f"{seed} second", strikes, report)
        world.rest()
        lived = world.check_baselines(grown_mib_max, report)
        world.check_books()
        answer_through_all(world)
        for name in ROUTERS + NODES:
            world.read_log(name)
            for line in world.logs[name].torn:
                world.ledger.problem(f"{name}'s log has a line that is none: {line[:200]}")
        for name in ROUTERS:
            world.audits[name].read()
            for line in world.audits[name].torn:
                world.ledger.problem(f"{name}'s audit log has a line that is none: {line[:200]}")
        if not world.ledger.exact():
            world.ledger.problem(f"{world.ledger.asked} requests were begun, ended have {sum(world.ledger.ends.values())}")
        report(f"faults {dict(strikes)}")
        report(f"{world.ledger.asked} requests, ends {dict(world.ledger.ends)}, on the way {dict(world.ledger.notes)}")
        report(f"log lines {sum(log.lines_read for log in world.logs.values())}, "
               f"under a jumped clock {sum(log.jumped_lines for log in world.logs.values())}")
        return world.ledger, strikes, lived
    except BaseException:
        report(world.last_words())
        report(f"faults {dict(strikes)}; ends {dict(world.ledger.ends)}; problems {world.ledger.problems[:20]}")
        raise
    finally:
        world.close()


class Chaos(unittest.TestCase):
    def test_every_request_ends_once_and_all_is_back_whatever_happens(self):
        ledger, strikes, lived = run_chaos(20, seed=1, report=lambda text: print(text, file=sys.stderr))
        self.assertEqual(ledger.problems, [])
        self.assertGreater(ledger.ends["whole"], 60, ledger.ends)
        self.assertGreaterEqual(len(strikes), 10, strikes)
        self.assertGreaterEqual(lived, 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    ledger, _, _ = run_chaos(arguments.minutes * 60, arguments.seed, hands=2, warm_up_whole=300,
                             report=lambda text: print(text, flush=True))
    for problem in ledger.problems:
        print("PROBLEM", problem)
    print(f"{len(ledger.problems)} problems")
    return 1 if ledger.problems else 0


if __name__ == "__main__":
    if "--minutes" in sys.argv:
        sys.exit(main())
    unittest.main()
