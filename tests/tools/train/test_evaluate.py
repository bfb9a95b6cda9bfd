"""evaluate.py against a small endpoint that knows the answers, or gets some wrong."""

import http.server
import json
import subprocess
import sys
import threading
import unittest

import places
import conversations

ANSWERS = {json.dumps(c.messages()): c.answer
           for task in ("instructions", "logs") for c in conversations.held_out(task, 10)}


class Endpoint:
    """Answers held-out prompts; `wrong_every` n spoils each nth answer, `tier` names who served."""

    def __init__(self, wrong_every=0, tier="cloud", status=200):
        endpoint = self
        self.requests = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, dict(self.headers), body))
                answer = ANSWERS[json.dumps(body["messages"])]
                if wrong_every and len(endpoint.requests) % wrong_every == 0:
                    answer = "finish(message=\"wrong\")"
                reply = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
                self.send_response(status)
                self.send_header("x-updraft-tier", tier)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def evaluate(self, *arguments):
        url = f"http://127.0.0.1:{self.server.server_port}/v1"
        return subprocess.run(
            [sys.executable, str(places.TOOLS / "evaluate.py"), "--url", url, "--instructions",
             "10", "--logs", "10", *arguments], capture_output=True, text=True, timeout=60)


class Evaluate(unittest.TestCase):
    def test_right_answers_pass_and_the_request_is_what_the_protocol_asks(self):
        with Endpoint() as endpoint:
            done = endpoint.evaluate("--api-key", "secret")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("passed: instructions 10/10 exact (1.000)", done.stdout.splitlines()[-1])
        path, headers, body = endpoint.requests[0]
        self.assertEqual(path, "/v1/chat/completions")
        self.assertEqual(headers["Authorization"], "Bearer secret")
        self.assertEqual(body["temperature"], 0)

    def test_answers_below_the_threshold_fail_and_are_shown(self):
        with Endpoint(wrong_every=5) as endpoint:
            done = endpoint.evaluate()
        self.assertEqual(done.returncode, 1)
        self.assertIn("mismatch instructions 5", done.stdout)
        self.assertIn("instructions: 0.800 exact is below 0.95", done.stdout)
        with Endpoint(wrong_every=5) as endpoint:
            lenient = endpoint.evaluate("--min-instructions", "0.8", "--min-logs", "0.8")
        self.assertEqual(lenient.returncode, 0, lenient.stdout)

    def test_logs_served_by_the_edge_fail(self):
        with Endpoint(tier="edge") as endpoint:
            done = endpoint.evaluate("--json")
        self.assertEqual(done.returncode, 1)
        result = json.loads(done.stdout)
        self.assertEqual(result["results"]["logs"]["tiers"], {"edge": 10})
        self.assertEqual(result["failures"], ["logs: served by {'edge': 10}, not by cloud"])

    def test_refused_requests_are_errors_not_answers(self):
        with Endpoint(status=503) as endpoint:
            done = endpoint.evaluate("--json", "--min-instructions", "0", "--min-logs", "0")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout)["results"]["logs"]["errors"], 10)


if __name__ == "__main__":
    unittest.main()
