"""Nodes die, restart, join and leave under a running router; every request ends once, with tokens or a typed error."""

import datetime
import email.utils
import json
import resource
import shutil
import threading
import time
import unittest

from harness import PROGRAM, Stack, chat, long_conversation, wait_until


class Faults(unittest.TestCase):
    def setUp(self):
        self.stack = Stack(nodes=("edge", "cloud", "cloud-2"))
        self.addCleanup(self.stack.close)

    def ask(self, tier=None, timeout=60, **more):
        return self.stack["router"].post("/v1/chat/completions", chat("Go back.", max_tokens=20, **more),
                                         {"x-updraft-tier": tier} if tier else {}, timeout)

    def test_a_killed_node_ends_its_streams_with_a_typed_error_within_3_seconds(self):
        self.stack.start_all()
        router, cloud = self.stack["router"], self.stack["cloud"]
        stream = router.stream("/v1/chat/completions", chat("Hi", stream=True, max_tokens=3500, ignore_eos=True, temperature=1.0),
                               {"x-updraft-tier": "cloud"})
        self.addCleanup(stream.close)
        events = iter(stream)
        for _ in range(3):
            next(events)
        cloud.process.send_signal(19)  # SIGSTOP: silent, its sockets stay open
        stopped = time.monotonic()
        rest = list(events)
        took = time.monotonic() - stopped
        self.assertLess(took, 4.0)
        last = json.loads(rest[-1])
        self.assertIn("error", last, rest[-2:])
        self.assertNotIn("[DONE]", rest)
        cloud.process.send_signal(18)
        cloud.kill()
        answer = self.ask()
        self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, "edge"))

    def test_nodes_restarted_or_added_are_used_without_restarting_the_router(self):
        self.stack.start_all()
        self.stack["cloud"].kill()
        self.stack.start_node("cloud")
        answer = wait_until(lambda: (lambda a: a if a.status == 200 else None)(self.ask("cloud")), what="the restarted cloud")
        self.assertEqual(answer.headers["x-updraft-node"], "cloud")
        self.stack.start_node("cloud", name="cloud-2", **{"model__name": "second-model"})
        answer = wait_until(
            lambda: (lambda a: a if a.status == 200 else None)(
                self.stack["router"].post("/v1/chat/completions", {**chat("Go back.", max_tokens=20), "model": "second-model"})),
            what="the added node's model")
        self.assertEqual(answer.headers["x-updraft-node"], "cloud-2")
        wait_until(lambda: {m["id"] for m in self.stack["router"].get("/v1/models").json()["data"]} == {"updraft-demo", "second-model"},
                   what="both models in /v1/models")

    @unittest.skipUnless(shutil.which("faketime"), "faketime is not installed")
    def test_nodes_whose_clocks_are_wrong_are_as_alive_as_any(self):
        """GPUStack #1576: a clock that differed was read as a lost heartbeat."""
        router = self.stack.start_router()
        for name, offset in (("edge", "+400d"), ("cloud", "-400d")):
            with self.stack.clock(offset):
                self.stack.start_node(name)
        for name, offset_days in (("edge", 400), ("cloud", -400)):
            date = email.utils.parsedate_to_datetime(self.stack[name].get("/livez").headers["date"])
            days = (date - datetime.datetime.now(datetime.timezone.utc)).days
            self.assertLess(abs(days - offset_days), 3, "the clock is not wrong at all")

        def both_fresh():
            return all(router.metric("updraft_router_nodes", {"state": "fresh", "tier": tier}) == 1 for tier in ("edge", "cloud"))

        wait_until(both_fresh, what="both nodes")
        begin = time.monotonic()
        while time.monotonic() - begin < 3.5:  # the longest lease is three seconds
            self.assertTrue(both_fresh())
            for tier in ("edge", "cloud"):
                answer = self.ask(tier)
                self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, tier))

    def test_a_full_disk_under_the_logs_stops_no_daemon(self):
        router = self.stack.start_router(log__file="/dev/full")
        self.stack.start_node("edge", log__file="/dev/full")
        wait_until(lambda: router.get("/readyz").status == 200, what="the router ready")
        for daemon in (router, self.stack["edge"]):
            answers = [daemon.post("/v1/chat/completions", chat("Go back.", max_tokens=20)) for _ in range(5)]
            self.assertEqual([answer.status for answer in answers], [200] * 5)
        for daemon in (router, self.stack["edge"]):
            self.assertEqual(daemon.stop(), 0)

    def test_daemons_whose_files_may_not_grow_serve_on_and_log_whole_lines_again(self):
        logs = {name: self.stack.folder / f"{name}.jsonl" for name in ("router", "edge")}
        self.stack.start_router(log__file=logs["router"], log__format="json")
        self.stack.start_node("edge", log__file=logs["edge"], log__format="json")
        wait_until(lambda: self.ask().status == 200, what="an answer")
        for name in logs:  # at a point where the next line is refused in its middle
            limit = (logs[name].stat().st_size + 20, resource.RLIM_INFINITY)
            resource.prlimit(self.stack[name].process.pid, resource.RLIMIT_FSIZE, limit)
        for _ in range(3):
            self.assertEqual(self.ask().status, 200)
            self.assertEqual(self.stack["edge"].get("/livez").status, 200)
        for name in logs:
            resource.prlimit(self.stack[name].process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            size = logs[name].stat().st_size
            self.assertEqual(self.stack[name].get("/livez").status, 200)
            wait_until(lambda: logs[name].stat().st_size > size, what=f"{name} to log again")
            for line in logs[name].read_text().splitlines():
                json.loads(line)

    def test_an_unknown_node_key_is_refused(self):
        self.stack.start_all()
        self.stack.new_key("stranger")
        stranger = self.stack.start_node("cloud", name="stranger", wait=False, **{"model__name": "stranger-model"})
        stranger.wait_ready()
        wait_until(lambda: stranger.get("/readyz").status == 503, what="the stranger's /readyz to say no")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            self.assertNotIn("stranger-model", [m["id"] for m in self.stack["router"].get("/v1/models").json()["data"]])
            time.sleep(0.1)
        self.assertEqual(self.ask().status, 200)

    def test_the_edge_serves_what_fits_when_the_router_is_away(self):
        self.stack.start_all()
        self.stack["router"].kill()
        edge = self.stack["edge"]
        answer = edge.post("/v1/chat/completions", chat("Go back.", max_tokens=20))
        self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, "edge"))
        body = {"model": "updraft-demo", "messages": long_conversation().messages(), "max_tokens": 40}
        answer = wait_until(lambda: (lambda a: a if a.status == 503 else None)(edge.post("/v1/chat/completions", body)),
                            what="a 503 for the long request")
        self.assertIn("retry-after", answer.headers)

    def test_a_restarted_router_gets_its_nodes_back(self):
        self.stack.start_all()
        router = self.stack["router"]
        pool, port = router.facts["pool"], router.port
        router.kill()
        self.stack.start_router(pool__listen=pool, http__port=port)
        answer = wait_until(lambda: (lambda a: a if a.status == 200 else None)(self.ask("cloud")), 15, "the pool to be rebuilt")
        self.assertEqual(answer.headers["x-updraft-node"], "cloud")

    def test_a_stopped_node_drains_first(self):
        self.stack.start_all()
        results = []

        def one():
            results.append(self.ask("cloud", ignore_eos=True))

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        self.assertEqual(self.stack["cloud"].stop(), 0)
        for thread in threads:
            thread.join()
        for answer in results:
            self.assertIn(answer.status, (200, 503), answer.body)

    def test_no_node_at_all_is_503_with_retry_after(self):
        router = self.stack.start_router()
        self.assertEqual(router.get("/livez").status, 200)
        self.assertEqual(router.get("/readyz").status, 503)
        answer = router.post("/v1/chat/completions", chat("x"))
        self.assertEqual(answer.status, 503)
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        self.assertIn("no node has joined", answer.error()["message"])

    def test_an_unknown_model_is_503_while_the_pool_gathers_and_404_after_that(self):
        started = time.monotonic()
        router = self.stack.start_router()
        self.stack.start_node("edge")
        unknown = {**chat("x"), "model": "gpt-99"}

        def ask_known():
            return router.post("/v1/chat/completions", chat("Go back.", max_tokens=20)).status

        wait_until(lambda: ask_known() == 200, what="the edge's model")
        answer = router.post("/v1/chat/completions", unknown)
        if time.monotonic() - started < 2.5:  # a slow machine may have used the seconds up
            self.assertEqual(answer.status, 503)
        while answer.status == 503:
            self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
            self.assertIn("still gathering", answer.error()["message"])
            self.assertLess(time.monotonic() - started, 10)
            time.sleep(0.1)
            answer = router.post("/v1/chat/completions", unknown)
        self.assertGreaterEqual(time.monotonic() - started, 3)
        self.assertEqual((answer.status, answer.error()["code"]), (404, "model_not_found"))
        self.assertIn("updraft-demo", answer.error()["message"])  # says what is served

    def test_a_full_queue_is_429_with_retry_after_and_everything_admitted_is_answered(self):
        """Ollama #7758: the limit of the queue was set and not kept."""
        self.stack.start_router(queue__max=2)
        self.stack.start_node("cloud", **{"model__slots": 1, "model__queue_max": 1})
        wait_until(lambda: self.stack["router"].get("/readyz").status == 200, what="the router ready")
        results = []

        def one():
            results.append(self.stack["router"].post(
                "/v1/chat/completions", chat("Hi", max_tokens=2500, ignore_eos=True, temperature=1.0), timeout=120))

        threads = [threading.Thread(target=one) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted({a.status for a in results})
        self.assertTrue(set(codes) <= {200, 429, 503}, codes)
        self.assertIn(200, codes)
        self.assertIn(429, codes)
        for answer in results:
            if answer.status != 200:
                self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)


if __name__ == "__main__":
    unittest.main()
