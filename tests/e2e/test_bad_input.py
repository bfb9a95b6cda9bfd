"""Bad input against the running daemons: each gets a clear answer, and the next request is served."""

import http.client
import json
import socket
import unittest

from harness import StackTest, chat, wait_until


class BadInput(StackTest):
    def tearDown(self):
        answer = self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20))
        self.assertEqual(answer.status, 200, "the endpoint no longer answers after this test")

    def refused(self, body, status, *words, path="/v1/chat/completions", headers=None):
        answer = self.router.post(path, body, headers)
        self.assertEqual(answer.status, status, answer.body[:300])
        error = answer.error()
        self.assertEqual(set(error) >= {"message", "type", "param", "code"}, True, error)
        for word in words:
            self.assertIn(word, error["message"])
        return error

    def test_json_that_is_none(self):
        self.refused(b"{", 400)
        self.refused(b"[1,2", 400)
        self.refused(b"", 400)
        self.refused(b'"text"', 400)

    def test_invalid_utf8_names_the_byte(self):
        self.refused(b'{"model":"updraft-demo","messages":[{"role":"user","content":"a\xff"}]}', 400, "UTF-8")

    def test_depth_and_numbers(self):
        self.refused("[" * 100000 + "]" * 100000, 400, "64")
        for value in ("1e400", "-1", "2147483648", "9223372036854775808", "1.5", "0"):
            self.refused(f'{{"model":"updraft-demo","messages":[{{"role":"user","content":"x"}}],"max_tokens":{value}}}', 400, "max_tokens")
        self.refused(chat("x", temperature=-1), 400, "temperature")
        self.refused(chat("x", top_p=2), 400, "top_p")
        self.refused(chat("x", n=9), 400, "n")
        self.refused(b'{"model":"updraft-demo","messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400)

    def test_empty_or_wrong_messages(self):
        self.refused({"model": "updraft-demo", "messages": []}, 400, "messages")
        self.refused({"model": "updraft-demo"}, 400, "messages")
        self.refused({"model": "updraft-demo", "messages": [{"role": "wizard", "content": "x"}]}, 400, "wizard")

    def test_an_unknown_model(self):
        error = self.refused({**chat("x"), "model": "gpt-99"}, 404, "gpt-99")
        self.assertEqual(error["code"], "model_not_found")

    def test_a_prompt_too_long_for_every_node_names_both_numbers(self):
        def lines(count, **more):
            return chat("log 12:00 pump 7 bar\n" * count, **more)

        # Every line has the same tokens, so two prompts that fit tell how many a longer one has.
        few, more = (self.router.post("/v1/chat/completions", lines(count, max_tokens=1)).json()["usage"]["prompt_tokens"]
                     for count in (50, 100))
        self.assertEqual((more - few) % 50, 0)
        per_line = (more - few) // 50
        count = 4096 // per_line + 10
        tokens = few + per_line * (count - 50)
        error = self.refused(lines(count), 400, "4096", str(tokens))
        self.assertEqual(error["code"], "context_length_exceeded")
        # So long that no tokenizer could make it fit: refused by the router itself, with its own least count.
        error = self.refused(lines(20000), 400, "4096", "tokens")
        self.assertEqual(error["code"], "context_length_exceeded")
        prompt = self.router.post("/v1/chat/completions", chat("x", max_tokens=1)).json()["usage"]["prompt_tokens"]
        error = self.refused(chat("x", max_tokens=5000), 400, "4096", str(prompt + 5000))
        self.assertEqual(error["code"], "context_length_exceeded")

    def test_a_body_over_the_limit(self):
        error = self.refused(b'{"messages":"' + b"x" * (17 << 20) + b'"}', 413)
        self.assertIn("16777216", error["message"].replace(",", ""))

    def test_an_image_to_a_text_only_model(self):
        png = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        error = self.refused({"model": "updraft-demo", "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": png}}, {"type": "text", "text": "What is this?"}]}]}, 400, "image")
        self.assertTrue(error["message"])

    def test_a_broken_image_is_told_before_anything_else(self):
        for url, what in (("data:image/png;base64,iVBORw0KGgo=", "ends before its header"),
                          ("data:image/png;base64,R0lGODlhAQABAAAAACw=", "neither PNG nor JPEG")):
            error = self.refused({"model": "updraft-demo", "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": url}}]}]}, 400, what)
            self.assertEqual(error["param"], "messages[0].content[0].image_url.url")

    def test_what_a_model_cannot_do_is_said(self):
        self.refused(chat("x", tools=[{"type": "function", "function": {"name": "f"}}]), 400, "tools")
        self.refused(chat("x", response_format={"type": "json_schema"}), 400, "response_format")

    def test_unknown_routes_methods_types_and_hosts(self):
        self.assertEqual(self.router.get("/v1/nothing").status, 404)
        self.assertEqual(self.router.get("/v1/chat/completions").status, 405)
        self.assertEqual(self.router.request("POST", "/v1/chat/completions", "x", {"Content-Type": "text/plain"}).status, 415)
        self.assertEqual(self.router.get("/v1/models", {"Host": "evil.example"}).status, 403)

    def test_smuggling_forms_are_refused(self):
        for head in (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
                     b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
                     b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n folded\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", self.router.port), timeout=10) as connection:
                connection.sendall(head)
                answer = connection.recv(65536)
                self.assertTrue(answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")), answer[:100])


class ClientsThatLeave(StackTest):
    """Whoever hangs up gives slot and pages back, at each tier, behind each door, streaming or not."""

    def idle(self, node):
        daemon = self.stack[node]
        return daemon.metric_sum("vllm:num_requests_running") == 0 and daemon.metric_sum("vllm:kv_cache_usage_perc") == 0

    def leaves_nothing(self, door, node, leave):
        self.assertTrue(wait_until(lambda: self.idle(node), what=f"an idle {node}"))
        leave(self.stack[door], {"x-updraft-tier": node} if door == "router" else {})
        wait_until(lambda: self.idle(node), 5, f"{node}'s slot and pages back")
        answer = self.stack[door].post("/v1/chat/completions", chat("Go back.", max_tokens=20))
        self.assertEqual(answer.status, 200)

    def test_mid_stream(self):
        def leave(daemon, headers):
            stream = daemon.stream("/v1/chat/completions", chat("Hi", stream=True, max_tokens=450, ignore_eos=True, temperature=1.0), headers)
            next(iter(stream))
            stream.close()

        for door, node in (("router", "edge"), ("router", "cloud"), ("edge", "edge")):
            with self.subTest(door=door, node=node):
                self.leaves_nothing(door, node, leave)

    def test_while_waiting_for_a_whole_answer(self):
        for door, node in (("router", "edge"), ("router", "cloud"), ("edge", "edge")):
            def leave(daemon, headers, node=node):
                body = json.dumps(chat("Hi", max_tokens=450, n=4, ignore_eos=True, temperature=1.0))
                connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
                connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json", **headers})
                wait_until(lambda: self.stack[node].metric_sum("vllm:num_requests_running") > 0, what="the request to run")
                connection.close()

            with self.subTest(door=door, node=node):
                self.leaves_nothing(door, node, leave)

    def test_half_way_through_the_body(self):
        with socket.create_connection(("127.0.0.1", self.router.port), timeout=10) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: 100000\r\n\r\n{\"model\":")
        self.assertEqual(self.router.post("/v1/chat/completions", chat("Go back.", max_tokens=20)).status, 200)


class Keys(StackTest):
    """The same endpoint with API keys."""

    @classmethod
    def setUpClass(cls):
        from harness import Stack
        cls.stack = Stack()
        try:
            made = cls.stack.run("keys", "api", cls.stack.folder / "keys/api-keys", "--name", "alice")
            cls.key = cls.stack.api_key = made.stdout.strip().splitlines()[-1]
            cls.stack.start_all(http__api_keys_file=cls.stack.folder / "keys/api-keys")
        except BaseException:
            cls.stack.close()
            raise
        cls.router = cls.stack["router"]

    def test_a_missing_or_wrong_key_is_401_and_the_right_one_works(self):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer " + self.key[:-1]}, {"Authorization": "Basic eA=="}):
            answer = self.router.post("/v1/chat/completions", chat("Hi", max_tokens=5), headers)
            self.assertEqual(answer.status, 401)
            self.assertIn("message", answer.error())
            self.assertIn("www-authenticate", answer.headers)
        answer = self.router.post("/v1/chat/completions", chat("Hi", max_tokens=5), {"Authorization": "Bearer " + self.key})
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.router.get("/livez").status, 200)
        self.assertNotIn(self.key, (self.stack.folder / "keys/api-keys").read_text())
        self.assertNotIn(self.key, self.router.log_text())



if __name__ == "__main__":
    unittest.main()
