"""The chaos test's clients and its ledger: every request that is begun ends once, in one of the ways that are allowed."""

import collections
import http.client
import json
import random
import threading
import time
import uuid

from harness import chat

PATIENCE_S = 120  # one request with all that is done to answer it
# What a router may say when it cannot answer now.
TYPED = (429, 499, 502, 503, 504)


class Ledger:
    """What became of each request. `kills` are the times at which a router was killed."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked = 0
        self.ends = collections.Counter()
        self.notes = collections.Counter()  # what happened on the way to an end
        self.problems = []
        self.kills = collections.defaultdict(list)

    def begin(self):
        with self.lock:
            self.asked += 1

    def end(self, how):
        with self.lock:
            self.ends[how] += 1

    def note(self, what):
        with self.lock:
            self.notes[what] += 1

    def problem(self, what):
        with self.lock:
            self.problems.append(what)

    def kill(self, router):
        with self.lock:
            self.kills[router].append(time.monotonic())

    def killed(self, router, began):
        with self.lock:
            return any(began - 1 <= at for at in self.kills[router])

    def exact(self):
        """Begun = ended, and nothing else ended."""
        with self.lock:
            return self.asked == sum(self.ends.values())


class Ended(Exception):
    """One attempt is over. how: "whole", "error 503", ...; "left": this client went away; "lost": the connection broke."""

    def __init__(self, how, detail=""):
        super().__init__(how)
        self.how, self.detail = how, detail


class Client(threading.Thread):
    """Asks one thing after the other, each under an Idempotency-Key; checks every answer to its end, and asks again
    elsewhere when a router was killed."""

    def __init__(self, world, seed, api_key):
        super().__init__(daemon=True)
        self.world, self.ledger, self.api_key = world, world.ledger, api_key
        self.random = random.Random(seed)
        self.resting = threading.Event()  # between requests, and told to stay there

    def run(self):
        while not self.world.stopping.is_set():
            if self.world.paused.is_set():
                self.resting.set()
                time.sleep(0.02)
                continue
            self.resting.clear()
            self.ledger.begin()
            try:
                self.ledger.end(self.ask())
            except Exception as error:
                self.ledger.problem(f"a client failed: {error!r}")
                self.ledger.end("client failed")
            time.sleep(self.random.uniform(0, 0.1))
        self.resting.set()

    def ask(self):
        """One request to its end, by as many attempts as killed routers make necessary."""
        body = chat(self.random.choice(["Go back.", "Open the settings.", "Hi " * self.random.randint(1, 60)]),
                    stream=self.random.random() < 0.7, max_tokens=self.random.choice([3, 20, 100]), temperature=1.0,
                    ignore_eos=self.random.random() < 0.5)
        if self.random.random() < 0.15:
            body["n"] = 2
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.api_key}",
                   "Idempotency-Key": str(uuid.UUID(int=self.random.getrandbits(128)))}
        if self.random.random() < 0.3:
            headers["x-updraft-tier"] = self.random.choice(["edge", "cloud"])
        leaves = self.random.random() < 0.15
        router = self.random.choice(self.world.routers)
        deadline = time.monotonic() + PATIENCE_S
        resumed = False
        left_at = None
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                self.attempt(router, body, headers, leaves and left_at is None)
            except Ended as ended:
                if ended.how == "refused":  # nobody took it
                    time.sleep(0.05)
                    router = self.random.choice(self.world.routers)
                elif ended.how == "lost":
                    if not self.ledger.killed(router, began):
                        self.ledger.problem(f"a request to {router} lost its connection: {ended.detail}")
                        return "lost"
                    resumed = True
                    self.ledger.note("resumed after a killed router")
                    router = self.random.choice([r for r in self.world.routers if r != router] or self.world.routers)
                elif ended.how == "left":
                    if self.random.random() < 0.5:
                        return "client left"
                    left_at = time.monotonic()
                    self.ledger.note("asked again after leaving")
                elif ended.how == "error 409":
                    # Right only while the router has not noticed yet that its client has gone.
                    if left_at is None or time.monotonic() - left_at > 10:
                        self.ledger.problem(f"409 without a request of this key in flight: {ended.detail}")
                        return ended.how
                    time.sleep(0.1)
                else:
                    if ended.how == "whole" and left_at is None and self.random.random() < 0.1:
                        self.ask_again(router, body, headers, ended.detail, began)
                    return ended.how + (", by another router" if resumed else "")
        self.ledger.problem(f"a request has no end after {PATIENCE_S} s")
        return "no end"

    def ask_again(self, router, body, headers, first, began):
        """Answered requests have one answer, however often they are sent."""
        try:
            self.attempt(router, body, headers, False)
        except Ended as ended:
            if ended.how == "whole" and ended.detail["replayed"]:
                self.ledger.note("replayed")
                if ended.detail["body"] != first["body"]:
                    self.ledger.problem(f"another answer under the same key: {ended.detail} after {first}")
            elif ended.how == "lost" and self.ledger.killed(router, began):
                pass
            elif ended.how != "refused" and not self.ledger.killed(router, began):
                self.ledger.problem(f"{router} did not keep an answer: {ended.how} {ended.detail}")

    def attempt(self, router, body, headers, leaves):
        """Sends it once; raises Ended."""
        connection = http.client.HTTPConnection("127.0.0.1", self.world.http_port(router), timeout=90)
        try:
            try:
                connection.connect()
            except OSError as error:
                raise Ended("refused", repr(error)) from error
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                error = json.loads(response.read())["error"]
                if not error["message"] or response.status not in (*TYPED, 409):
                    self.ledger.problem(f"status {response.status}: {error}")
                raise Ended(f"error {response.status}", error["message"])
            replayed = response.getheader("Idempotent-Replayed") == "true"
            if body["stream"]:
                text = self.read_stream(response, body.get("n", 1), leaves)
            else:
                text = response.read()
                ends = [choice["finish_reason"] for choice in json.loads(text)["choices"]]
                if len(ends) != body.get("n", 1) or not all(end in ("stop", "length") for end in ends):
                    self.ledger.problem(f"an answer without all its ends: {ends}")
            raise Ended("whole", {"replayed": replayed, "body": text})
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Ended("lost", repr(error)) from error
        finally:
            connection.close()

    def read_stream(self, response, n, leaves):
        leaves_after = self.random.randint(1, 30) if leaves else None
        finish, error, done, count, text = {}, None, 0, 0, b""
        while line := response.readline():
            text += line
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if done or error is not None:
                self.ledger.problem(f"data after the end: {data[:200]}")
            if data == b"[DONE]":
                done += 1
                continue
            value = json.loads(data)
            if "error" in value:
                error = value["error"]
                continue
            count += 1
            for choice in value["choices"]:
                index = choice["index"]
                if index in finish and (choice.get("finish_reason") or choice["delta"].get("content")):
                    self.ledger.problem("text after the finish")
                if choice.get("finish_reason"):
                    finish[index] = choice["finish_reason"]
            if count == leaves_after:
                raise Ended("left")
        if error is not None:
            raise Ended("error in the stream", error)
        if done != 1 or len(finish) != n:
            raise Ended("lost", f"{count} pieces, finish {finish}, [DONE] {done} times")
        return text
