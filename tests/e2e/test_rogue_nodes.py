"""Nodes and strangers that misbehave towards a running router: it stays up, says what it refused, and serves on."""

import json
import random
import socket
import time
import unittest

from harness import Rogue, StackTest, chat, wait_until

# One field each that cannot be; the rest of the beat is good.
ABSURD = ("slots_total=-1", "slots_total=2000000000", "slots_free=5", "slots_free=-1", "running=-7", "waiting=2147483647",
          "kv_tokens_total=9223372036854775807", "kv_tokens_total=-1", "kv_tokens_free=16385", "prefill_tokens_queued=-1",
          "decode_tokens_reserved=9000000000000000000", "prefill_tokens_per_s=nan", "prefill_tokens_per_s=inf",
          "decode_tokens_per_s=-1", "decode_tokens_per_s=1e30", "bytes_per_token=nan", "interval_ms=0", "interval_ms=-100",
          "lease_ttl_ms=0", "lease_ttl_ms=2000000000", "state=200", "cpu_load=nan", "cpu_load=1e9", "memory_free_bytes=-1",
          "sender_mono_ns=-1", "slots_total=100000 slots_free=100000")
GOOD = ("slots_total=4 slots_free=4 running=0 waiting=0 kv_tokens_total=16384 kv_tokens_free=16384 prefill_tokens_queued=0 "
        "decode_tokens_reserved=0 prefill_tokens_per_s=0 decode_tokens_per_s=0 bytes_per_token=0 interval_ms=50 lease_ttl_ms=2000 "
        "state=1 cpu_load=0 memory_free_bytes=0 sender_mono_ns=0")


class RogueNodes(StackTest):
    nodes = ("edge", "cloud", "rogue")

    def rogue(self, *steps, key="rogue", **more):
        rogue = Rogue(self.stack, key, *steps, **more)
        self.addCleanup(rogue.stop)
        return rogue

    def tearDown(self):
        for tier in ("edge", "cloud"):
            answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20), {"x-updraft-tier": tier})
            self.assertEqual((answer.status, answer.headers.get("x-updraft-node")), (200, tier), "the pool no longer serves after this test")
        self.assertIsNone(self.router.process.poll())

    def refused(self):
        return self.router.metric("updraft_router_frames_refused_total") + self.router.metric("updraft_router_beats_refused_total")

    def wait_refused(self, count):
        wait_until(lambda: self.refused() >= count, what=f"{count} refused frames and beats")

    def log_lines(self, *words):
        return [line for line in self.router.log_text().splitlines() if all(word in line for word in words)]

    def test_absurd_beats_are_refused_each_and_attract_no_work(self):
        before = self.refused()
        steps = ["hello id=rogue model=updraft-demo context=100000", "await welcome", "beat state=0"]
        for absurd in ABSURD:
            steps += [f"beat state=1 {absurd}", f"beat {GOOD} state=0"]  # a good beat between: loading, so it asks for no work
        rogue = self.rogue(*steps, "pause 300").finish()
        self.wait_refused(before + len(ABSURD))
        self.assertEqual(self.refused(), before + len(ABSURD))
        self.assertEqual(rogue.said("submit"), [])
        wait_until(lambda: self.log_lines("frame refused", "rogue", "slots_total"), what="a line that names node, field and value")
        wait_until(lambda: self.log_lines("beat refused", "rogue", "slots_total = 100000"), what="the same for what only the router judges")

    def test_requests_go_on_while_absurd_beats_pour_in(self):
        rogue = self.rogue("hello id=rogue model=updraft-demo context=100000", "await welcome",
                           "beat slots_free=1000 decode_tokens_per_s=1e30", "stay")
        rogue.wait_for("welcome")
        lost_before = len(self.log_lines("node lost", "rogue"))
        for _ in range(20):
            answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20))
            self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, "edge"))
        # Absurd beats alone keep nobody alive.
        wait_until(lambda: len(self.log_lines("node lost", "rogue")) > lost_before, what="the rogue to be lost")
        self.assertEqual(rogue.said("submit"), [])

    def test_a_node_that_boasts_and_never_answers_loses_the_request_to_another(self):
        rogue = self.rogue("hello id=rogue model=updraft-demo context=4096", "await welcome",
                           "beat slots_total=60000 slots_free=60000 kv_tokens_total=1000000000 kv_tokens_free=1000000000 "
                           "prefill_tokens_per_s=1e9 decode_tokens_per_s=1e9 last_assignment_seq=18446744073709551615", "stay")
        rogue.wait_for("done beat")
        answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20), {"x-updraft-tier": "cloud"}, timeout=60)
        self.assertTrue(rogue.said("submit"), "the boast attracted nothing: this test shows nothing")
        self.assertEqual((answer.status, answer.headers["x-updraft-node"]), (200, "cloud"))
        rogue.wait_for("cancel " + answer.json()["id"].removeprefix("chatcmpl-"))

    def test_hellos_that_lie_are_refused_by_name(self):
        for hello, words in (("id=cloud", ("node refused", "cloud", "name of another key")),
                             ("id=edge tier=edge", ("node refused", "edge", "name of another key")),
                             ("id=../../etc/passwd", ("frame refused", "etc/passwd")),
                             ("id=rogue protocol=99", ("node refused", "protocol version 99")),
                             ("id=rogue models=1000", ("refused", "rogue", "1000")),
                             ("id=rogue context=0", ("node refused", "context of 0")),
                             ("id=rogue context=-5", ("frame refused", "context_tokens"))):
            with self.subTest(hello=hello):
                time.sleep(1.1)  # the router writes a line a second about frames that do not decode
                rogue = self.rogue(f"hello {hello} model=stolen", "beat slots_free=4", "pause 200").finish()
                wait_until(lambda: self.log_lines(*words), what=f"a line with {words}")
                if words[0] == "node refused":  # what does not decode is no hello: its beat is asked for one
                    self.assertEqual(rogue.said("welcome"), [])
                self.assertNotIn("stolen", [m["id"] for m in self.router.get("/v1/models").json()["data"]])

    def test_truncated_random_and_oversized_frames(self):
        before = self.refused()
        self.rogue("hello id=rogue", "await welcome", "random 0 1", "random 1 1", "random 100 2", "random 100000 3", "random 1000000 4",
                   "cut 4", "cut 8", "cut 60", "cut 120", "flip 300 5", "pause 200").finish()
        self.wait_refused(before + 9)
        # Over what a frame may have: that connection ends, its node may come again.
        rogue = self.rogue("hello id=rogue", "await welcome", "random 20000000 6", "await disconnected", "pause 500", "stay")
        rogue.wait_for("disconnected")
        wait_until(lambda: len(rogue.said("connected")) >= 2, what="the connection to be made anew")

    def test_another_nodes_request_cannot_be_hijacked(self):
        body = chat("Hi", stream=True, max_tokens=3900, ignore_eos=True, temperature=1.0, seed=3)
        stream = self.router.stream("/v1/chat/completions", body, {"x-updraft-tier": "cloud"})
        self.addCleanup(stream.close)
        events = iter(stream)
        request_id = json.loads(next(events))["id"].removeprefix("chatcmpl-")
        rogue = self.rogue("hello id=rogue", "await welcome", "beat", f"hijack {request_id} 100", "pause 200")
        rest = list(events)
        rogue.finish()
        self.assertEqual(rest[-1], "[DONE]")
        self.assertNotIn("HIJACKED", "".join(rest))
        self.assertIn('"finish_reason":"length"', rest[-2] + rest[-3])
        wait_until(lambda: self.router.metric("updraft_router_stale_messages_total") > 0, what="a stale message to be counted")

    def test_an_unknown_key_or_a_wrong_router_key_gets_nowhere(self):
        self.stack.new_key("stranger")
        before = self.router.metric("updraft_router_keys_refused_total")
        stranger = self.rogue("await connected", key="stranger")
        self.assertIn("allow-list", stranger.wait_for("problem"))
        wait_until(lambda: self.router.metric("updraft_router_keys_refused_total") > before, what="the refusal in /metrics")
        self.assertEqual(stranger.process.wait(20), 1)
        self.assertEqual(stranger.said("connected"), [])
        elsewhere = self.rogue("await connected", router_key="stranger")  # a router that is not this one
        elsewhere.wait_for("problem")
        self.assertEqual(elsewhere.process.wait(20), 1)
        self.assertEqual(elsewhere.said("connected"), [])

    def test_bytes_that_are_no_zeromq_at_the_pools_port(self):
        host, port = self.router.facts["pool"].removeprefix("tcp://").split(":")
        chance = random.Random(7)
        silent = []
        for size in (0, 1, 10, 64, 1000, 100000) * 8:
            connection = socket.create_connection((host, int(port)), timeout=10)
            try:
                connection.sendall(chance.randbytes(size))
            except OSError:
                pass  # it may have hung up already
            silent.append(connection)
        answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20), {"x-updraft-tier": "cloud"})
        self.assertEqual(answer.status, 200)  # while they are still open
        for connection in silent:
            connection.close()

    def test_many_hellos_over_many_connections_leave_one_node(self):
        for round_index in range(5):
            self.rogue(*(f"hello id=rogue epoch={1000 * round_index + i}" for i in range(1, 40)), "pause 50").finish()
        known = lambda: sum(self.router.metric("updraft_router_nodes", {"state": state, "tier": "cloud"}) or 0
                            for state in ("fresh", "suspect", "stale", "dead", "draining", "loading"))
        wait_until(lambda: known() <= 2, what="one node and its last life in the table")


if __name__ == "__main__":
    unittest.main()
