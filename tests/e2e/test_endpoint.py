"""The one endpoint in front of running daemons: placement, answers, conventions."""

import json
import subprocess
import unittest

from harness import ROOT, StackTest, chat, long_conversation, wait_until


class Endpoint(StackTest):
    def test_a_short_request_is_answered_at_the_edge(self):
        answer = self.router.post("/v1/chat/completions", chat("Swipe up please", max_tokens=40))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.headers["x-updraft-tier"], "edge")
        self.assertEqual(answer.headers["x-updraft-node"], "edge")
        self.assertTrue(answer.headers["x-updraft-decision"])
        body = answer.json()
        self.assertEqual(body["object"], "chat.completion")
        self.assertEqual(body["choices"][0]["message"]["role"], "assistant")
        self.assertTrue(body["choices"][0]["message"]["content"])
        self.assertEqual(body["choices"][0]["finish_reason"], "stop")
        usage = body["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])

    def test_a_long_request_rises_to_the_cloud(self):
        conversation = long_conversation()
        answer = self.router.post("/v1/chat/completions",
                                  {"model": "updraft-demo", "temperature": 0, "max_tokens": 60, "messages": conversation.messages()})
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.headers["x-updraft-tier"], "cloud")
        self.assertGreater(answer.json()["usage"]["prompt_tokens"], 600)

    def test_a_prompt_that_only_the_edge_itself_can_measure_is_placed_anew_unseen(self):
        # Few bytes, many tokens: the router's estimate from bytes says that it fits the edge, the edge's count does not.
        text = "Zq#9@" * 110
        answer = self.router.post("/v1/chat/completions", chat(text, max_tokens=4))
        self.assertEqual(answer.status, 200, answer.body)
        self.assertGreater(answer.json()["usage"]["prompt_tokens"], 400)
        self.assertIn(answer.headers["x-updraft-tier"], ("edge", "cloud"))

    def test_a_repeated_beginning_is_found_and_told_in_the_usage_and_the_metrics(self):
        edge = self.stack["edge"]
        hits = edge.metric_sum("vllm:prefix_cache_hits_total")
        body = chat("Open the settings, then tell me in a few words what the battery page says about yesterday. " * 2,
                    max_tokens=4)
        answers = [self.router.post("/v1/chat/completions", body, {"x-updraft-tier": "edge"}).json() for _ in range(2)]
        first, second = (answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers)
        prompt_tokens = answers[0]["usage"]["prompt_tokens"]
        self.assertLess(first, prompt_tokens // 2)
        self.assertGreater(second, prompt_tokens - 1 - 32 - 1)  # all full pages of 32 tokens before the last token
        self.assertLess(second, prompt_tokens)
        self.assertEqual(answers[0]["choices"], answers[1]["choices"])
        self.assertEqual(edge.metric_sum("vllm:prefix_cache_hits_total") - hits, first + second)
        self.assertGreaterEqual(edge.metric_sum("vllm:prefix_cache_queries_total"), 2 * prompt_tokens)

    def test_the_agents_bench_reports_what_growing_conversations_find(self):
        done = subprocess.run([str(ROOT / "tools/bench/agents"), f"edge=http://127.0.0.1:{self.stack['edge'].port}", "--agents", "3",
                               "--turns", "3", "--shared-words", "20", "--own-words", "4", "--turn-words", "2", "--max-tokens", "4",
                               "--json"], capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        first, later = map(json.loads, done.stdout.splitlines())
        self.assertEqual((first["turns"], first["answers"], later["answers"]), ("first", 3, 6))
        self.assertLess(first["hit_rate"], later["hit_rate"])
        self.assertGreater(later["hit_rate"], 0.3)
        self.assertEqual(later["completion_tokens"], 24)
        nowhere = subprocess.run([str(ROOT / "tools/bench/agents"), "gone=http://127.0.0.1:9"], capture_output=True, text=True)
        self.assertEqual(nowhere.returncode, 1)
        self.assertIn("gone", nowhere.stderr)

    def test_the_tier_hint_is_followed(self):
        for tier in ("edge", "cloud"):
            answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=30), {"x-updraft-tier": tier})
            self.assertEqual(answer.headers["x-updraft-tier"], tier)

    def test_the_same_greedy_answer_streamed_and_not(self):
        body = chat("Go back.", max_tokens=30)
        whole = self.router.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        stream = self.router.stream("/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
        self.assertEqual(stream.headers["content-type"].split(";")[0], "text/event-stream")
        self.assertEqual(stream.headers["x-accel-buffering"], "no")
        chunks = list(stream)
        self.assertEqual(chunks[-1], "[DONE]")
        parsed = [json.loads(chunk) for chunk in chunks[:-1]]
        self.assertEqual(parsed[0]["choices"][0]["delta"]["role"], "assistant")
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in parsed if c["choices"])
        self.assertEqual(text, whole)
        self.assertEqual(parsed[-1]["choices"], [])
        self.assertGreater(parsed[-1]["usage"]["completion_tokens"], 0)

    def test_text_completions_stop_echo_and_logprobs(self):
        answer = self.router.post("/v1/completions", {"model": "updraft-demo", "prompt": "do(action=", "max_tokens": 12,
                                                      "temperature": 0, "logprobs": 2, "echo": True, "stop": ["\n"]})
        self.assertEqual(answer.status, 200, answer.body)
        choice = answer.json()["choices"][0]
        self.assertTrue(choice["text"].startswith("do(action="))
        self.assertIn("token_logprobs", choice["logprobs"])

    def test_sampling_with_the_same_seed_is_the_same(self):
        body = chat("Hi", max_tokens=20, temperature=1.3, seed=7, n=3)
        first = self.router.post("/v1/chat/completions", body).json()["choices"]
        again = self.router.post("/v1/chat/completions", body).json()["choices"]
        self.assertEqual([c["index"] for c in first], [0, 1, 2])
        self.assertEqual([c["message"]["content"] for c in first], [c["message"]["content"] for c in again])

    def test_models_health_and_metrics(self):
        models = self.router.get("/v1/models").json()
        self.assertEqual([m["id"] for m in models["data"]], ["updraft-demo"])
        self.assertEqual(self.router.get("/v1/models/updraft-demo").status, 200)
        self.assertEqual(self.router.get("/livez").status, 200)
        self.assertEqual(self.router.get("/readyz").status, 200)
        for daemon in ("router", "edge", "cloud"):
            text = self.stack[daemon].get("/metrics").body.decode()
            self.assertIn("updraft_", text)
        self.assertIn("vllm:num_requests_running", self.stack["cloud"].get("/metrics").body.decode())

    def test_the_edge_answers_on_its_own_loopback_endpoint_and_sends_up_what_is_long(self):
        edge = self.stack["edge"]
        answer = edge.post("/v1/chat/completions", chat("Go back.", max_tokens=30))
        self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, "edge"))
        conversation = long_conversation()
        body = {"model": "updraft-demo", "temperature": 0, "max_tokens": 60, "messages": conversation.messages()}
        answer = edge.post("/v1/chat/completions", body)
        self.assertEqual((answer.status, answer.headers["x-updraft-tier"]), (200, "cloud"), answer.body)
        direct = self.router.post("/v1/chat/completions", body)
        self.assertEqual(answer.json()["choices"][0]["message"]["content"], direct.json()["choices"][0]["message"]["content"])

    def test_local_only_never_leaves_the_gateway(self):
        conversation = long_conversation()
        answer = self.stack["edge"].post("/v1/chat/completions",
                                         {"model": "updraft-demo", "messages": conversation.messages(), "max_tokens": 8},
                                         {"x-updraft-residency": "local-only"})
        self.assertEqual(answer.status, 400)
        self.assertEqual(answer.error()["code"], "context_length_exceeded")

    def test_request_ids_are_echoed(self):
        answer = self.router.post("/v1/chat/completions", chat("Hi", max_tokens=5), {"x-request-id": "my-request-7"})
        self.assertEqual(answer.headers["x-request-id"], "my-request-7")

    def test_a_client_that_leaves_mid_stream_gives_its_pages_back(self):
        cloud = self.stack["cloud"]
        before = wait_until(lambda: cloud.metric_sum("vllm:num_requests_running") == 0 and cloud.metric_sum("vllm:kv_cache_usage_perc") == 0,
                            what="an idle cloud")
        self.assertTrue(before)
        stream = self.router.stream("/v1/chat/completions", chat("Hi", stream=True, max_tokens=3000, ignore_eos=True, temperature=1.0),
                                    {"x-updraft-tier": "cloud"})
        for _, _chunk in zip(range(3), stream):
            pass
        stream.close()
        wait_until(lambda: cloud.metric_sum("vllm:num_requests_running") == 0 and cloud.metric_sum("vllm:kv_cache_usage_perc") == 0,
                   what="the cloud idle again")


if __name__ == "__main__":
    unittest.main()
