"""Programs beside a running edge daemon that come through shared memory: the examples in C, C++ and Python, and the Python
package's own promises."""

import array
import gc
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

from gguf_table import Table
from harness import EDGE_MODEL, PROGRAM, ROOT, Stack, chat, wait_until

sys.path.insert(0, str(ROOT / "edge/client/python"))
os.environ.setdefault("UPDRAFT_CLIENT_LIBRARY", str(PROGRAM.parent.parent / "lib/libupdraft_client.so.1"))
import updraft  # noqa: E402

EXAMPLES = PROGRAM.parent.parent / "examples"


class LocalClients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = Stack(("edge",))
        try:
            cls.edge = cls.stack.start_node("edge")
        except BaseException:
            cls.stack.close()
            raise
        cls.socket = cls.edge.facts["socket"]
        # What each client must answer: the same greedy request through HTTP.
        cls.expected = {q: cls.answer_over_http(q) for q in ("Go back.", "Swipe up please")}

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    @classmethod
    def answer_over_http(cls, question):
        answer = cls.edge.post("/v1/chat/completions", chat(question, max_tokens=64))
        assert answer.status == 200, answer.body
        return answer.json()["choices"][0]["message"]["content"]

    def run_example(self, *command, status=0):
        env = {**self.stack.env, "PYTHONPATH": str(ROOT / "edge/client/python")}
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60, env=env)
        self.assertEqual(done.returncode, status, done.stderr)
        return done

    def test_the_c_example_prints_the_answer(self):
        done = self.run_example(EXAMPLES / "chat_c", "-s", self.socket, "Go back.")
        self.assertEqual(done.stdout, self.expected["Go back."] + "\n")
        self.assertIn("prompt tokens", done.stderr)

    def test_the_c_example_says_when_nobody_listens(self):
        done = self.run_example(EXAMPLES / "chat_c", "-s", "/nowhere/edge.sock", "Go back.", status=1)
        self.assertIn("/nowhere/edge.sock", done.stderr)

    def test_the_cpp_example_prints_both_answers(self):
        done = self.run_example(EXAMPLES / "chat_cpp", "-s", self.socket, "Go back.", "Swipe up please")
        self.assertEqual(done.stdout, self.expected["Go back."] + "\n" + self.expected["Swipe up please"] + "\n")

    def test_the_python_example_prints_the_answer(self):
        done = self.run_example(sys.executable, ROOT / "edge/examples/chat.py", "--socket", self.socket, "Go back.")
        self.assertEqual(done.stdout, self.expected["Go back."] + "\n")
        done = self.run_example(sys.executable, ROOT / "edge/examples/chat.py", "--socket", "/nowhere/x", "Go back.", status=1)
        self.assertIn("/nowhere/x", done.stderr)

    def test_the_asyncio_example_prints_all_answers(self):
        questions = list(self.expected)
        done = self.run_example(sys.executable, ROOT / "edge/examples/chat_async.py", "--socket", self.socket, *questions)
        self.assertEqual(done.stdout, "".join(self.expected[q] + "\n" for q in questions))

    def test_tokens_arrive_one_by_one_and_make_the_answer(self):
        with updraft.Session(self.socket) as session:
            self.assertIn("updraft-demo", session.models)
            stream = session.chat("Go back.", max_tokens=64, temperature=0)
            tokens = list(stream)
            self.assertEqual("".join(map(str, tokens)), self.expected["Go back."])
            self.assertEqual(tokens[-1].finish, "stop")
            answer = stream.result()
            self.assertEqual(answer.text, self.expected["Go back."])
            self.assertEqual(answer.completion_tokens, len(answer.ids))
            self.assertEqual(answer.place.tier, "edge")
            self.assertGreater(answer.first_token_s, 0)

    def test_two_streams_interleave(self):
        with updraft.Session(self.socket) as session:
            streams = {q: session.chat(q, max_tokens=64, temperature=0) for q in self.expected}
            for question, stream in reversed(streams.items()):
                self.assertEqual(stream.result().text, self.expected[question])

    def test_a_text_written_into_shared_memory_asks_like_any_other(self):
        question = b"Go back."
        with updraft.Session(self.socket) as session:
            buffer = session.allocate(len(question))
            buffer.view[:] = question
            stream = session.chat([{"role": "user", "content": buffer}], max_tokens=64, temperature=0)
            self.assertEqual(stream.result().text, self.expected["Go back."])
            with self.assertRaises(updraft.InvalidArgument):
                buffer.view  # the submit took it

    def test_token_ids_are_continued_and_logprobs_come_back(self):
        with updraft.Session(self.socket) as session:
            lists = session.complete([5, 6, 7], max_tokens=4, temperature=0, ignore_eos=True, logprobs=True).result()
            arrays = session.complete(array.array("i", [5, 6, 7]), max_tokens=4, temperature=0, ignore_eos=True)
            tokens = list(arrays)
            self.assertEqual(arrays.result().ids, lists.ids)
            self.assertEqual(lists.prompt_tokens, 3)
            self.assertEqual(tokens[-1].finish, "length")
            scored = list(session.complete([5, 6, 7], max_tokens=4, temperature=0, ignore_eos=True, logprobs=True))
            self.assertTrue(all(len(t.logprobs) == len(t.ids) and max(t.logprobs, default=0) <= 0 for t in scored), scored)

    def test_rows_of_the_models_own_table_are_continued_as_their_tokens_are(self):
        table, tokens = Table(EDGE_MODEL), [5, 6, 7, 300, 301, 17, 900]
        rows = table.rows_of(tokens)
        settings = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
        with updraft.Session(self.socket) as session:
            self.assertEqual(session.embedding_dim(), table.dim)
            self.assertEqual(session.embedding_dim("no such model"), 0)
            want = session.complete(tokens, **settings).result()

            def check(prompt, case):
                with self.subTest(case):
                    got = session.complete(prompt, **settings).result()
                    self.assertEqual(got.ids, want.ids)
                    self.assertEqual(got.prompt_tokens, len(tokens))
                    self.assertEqual(got.place.decision, "input embeddings")

            check(updraft.Embeddings(rows), "an array")
            check(updraft.Embeddings(rows.toreadonly()), "a read-only array")
            check([tokens[:2], updraft.Embeddings(table.rows_of(tokens[2:5])), "", array.array("i", tokens[5:])], "between ids")
            buffer = session.allocate(rows.nbytes)
            buffer.view[:] = rows.cast("B")
            check(updraft.Embeddings(buffer, dim=table.dim), "in place")
            with self.assertRaises(updraft.InvalidArgument):
                buffer.view  # the submit took it
            try:
                import numpy
            except ImportError:
                return
            given = numpy.array(rows)
            check(updraft.Embeddings(given), "numpy")
            check(updraft.Embeddings(numpy.asfortranarray(given)), "numpy in another order")
            buffer = session.allocate(given.nbytes)
            buffer.array(given.shape, "float32")[:] = given
            check([updraft.Embeddings(buffer, dim=table.dim)], "numpy in place")
            for dtype, rows in ((None, given.astype("float16")),
                                ("bf16", (given.view("uint32") >> 16).astype("uint16"))):
                answer = session.complete(updraft.Embeddings(rows, dtype=dtype), **settings).result()
                self.assertEqual((answer.prompt_tokens, len(answer.ids)), (len(tokens), 12))

    def test_embeddings_that_make_no_sense_are_refused_with_the_reason(self):
        dim = Table(EDGE_MODEL).dim
        with updraft.Session(self.socket) as session:
            for wrong in (b"1234", array.array("f", [1.0, 2.0]), memoryview(bytes(8)).cast("i", [1, 2]), 7):
                with self.assertRaises(updraft.InvalidArgument):
                    session.complete(updraft.Embeddings(wrong))
            with self.assertRaises(updraft.InvalidArgument):
                updraft.Embeddings(b"", dtype="f64")
            with self.assertRaises(updraft.InvalidArgument):
                session.complete(updraft.Embeddings(session.allocate(10), dim=dim))
            narrow = memoryview(bytes(4 * 2 * 100)).cast("f", [2, 100])
            with self.assertRaisesRegex(updraft.RequestFailed, f"rows of 100 values, but updraft-demo takes embeddings of {dim}") as caught:
                session.complete(["Go", updraft.Embeddings(narrow)]).result()
            self.assertEqual((caught.exception.code, caught.exception.param), ("invalid_request", "prompt"))
            values = array.array("f", [0.0] * 2 * dim)
            values[dim + 3] = float("nan")
            with self.assertRaisesRegex(updraft.RequestFailed, "row 1, column 3"):
                session.complete(updraft.Embeddings(memoryview(values).cast("B").cast("f", [2, dim]))).result()
            many = memoryview(bytes(4 * dim * 5000)).cast("f", [5000, dim])
            with self.assertRaises(updraft.ContextTooLong) as caught:
                session.complete(updraft.Embeddings(many)).result()
            self.assertGreaterEqual(caught.exception.prompt_tokens, 5000)
            # The session serves on.
            self.assertTrue(session.complete([5, 6, 7], max_tokens=2, temperature=0).result().ids)

    def test_the_embeddings_example_prints_the_continuation(self):
        try:
            import numpy
        except ImportError:
            self.skipTest("needs numpy")
        table = Table(EDGE_MODEL)
        rows = numpy.array(table.rows_of([40, 41, 42]))
        with tempfile.TemporaryDirectory() as folder, updraft.Session(self.socket) as session:
            numpy.save(folder + "/rows.npy", rows)
            want = session.complete(["Go ", [40, 41, 42], " now"], max_tokens=64, temperature=0).result().text
            done = self.run_example(sys.executable, ROOT / "edge/examples/embeddings.py", "--socket", self.socket,
                                    folder + "/rows.npy", "Go ", " now")
            self.assertEqual(done.stdout, want + "\n")
            self.assertIn(f"3 of them rows of {table.dim} values", done.stderr)
            numpy.save(folder + "/narrow.npy", rows[:, :10])
            done = self.run_example(sys.executable, ROOT / "edge/examples/embeddings.py", "--socket", self.socket,
                                    folder + "/narrow.npy", "Go ", status=1)
            self.assertIn("rows of 10 values", done.stderr)

    def test_what_fails_has_a_name_and_a_reason(self):
        with self.assertRaises(updraft.NoDaemon) as caught:
            updraft.Session("/nowhere/edge.sock")
        self.assertIn("/nowhere/edge.sock", str(caught.exception))
        with updraft.Session(self.socket) as session:
            with self.assertRaises(updraft.ModelNotFound) as caught:
                session.chat("x", model="no-such-model").result()
            self.assertIn("no-such-model", str(caught.exception))
            with self.assertRaises(updraft.InvalidArgument):
                session.chat("x", heat=1)
            with self.assertRaises(updraft.InvalidArgument):
                session.chat([{"role": "user", "content": updraft.Image(b"GIF89a")}])
            with self.assertRaises(updraft.RequestFailed) as caught:
                session.chat("x", temperature=-1).result()
            self.assertEqual(caught.exception.code, "invalid_request")
            with self.assertRaises(updraft.Unsupported):
                session.chat([{"role": "user", "content": ["What is this?", updraft.Image(self.png(4, 4))]}]).result()
            with self.assertRaises(updraft.NoRoom):
                session.allocate(1 << 30)
        with self.assertRaises(updraft.SessionLost):
            session.chat("x")

    def test_a_full_session_takes_more_memory(self):
        with updraft.Session(self.socket) as session:  # 8 MiB to begin with
            buffers = [session.allocate(5 << 20) for _ in range(4)]
            for buffer in buffers:
                buffer.view[-8:] = b"Go back."
            buffers[3].view[:8] = b"Go back."
            buffers[3].used = 8
            stream = session.chat([{"role": "user", "content": buffers[3]}], max_tokens=64, temperature=0)
            self.assertEqual(stream.result().text, self.expected["Go back."])
            ids = session.allocate(12)
            ids.ids()[:] = memoryview(array.array("i", [5, 6, 7]))
            self.assertEqual(session.complete(ids, max_tokens=2, temperature=0).result().prompt_tokens, 3)
            text = session.allocate(8)
            text.view[:] = b"Go back."
            self.assertGreater(session.complete(text, max_tokens=2, temperature=0).result().prompt_tokens, 0)

    def test_images_are_checked_before_the_model_says_that_it_reads_none(self):
        pixels = memoryview(bytes(4 * 5 * 3)).cast("B", (4, 5, 3))
        with updraft.Session(self.socket) as session:
            mapped = self.edge.metric("updraft_local_mapped_bytes")
            for image in (updraft.Image(pixels, raw=True), updraft.Image(pixels, once=True), updraft.Image(pixels, raw=True, once=True),
                          updraft.Image(self.png(400, 300), once=True)):
                with self.assertRaises(updraft.Unsupported):
                    session.chat([{"role": "user", "content": image}]).result()
            with self.assertRaises(updraft.RequestFailed) as caught:
                session.chat([{"role": "user", "content": updraft.Image(self.png(4, 4)[:20])}]).result()
            self.assertIn("ends before its header", str(caught.exception))
            self.assertEqual(caught.exception.code, "invalid_request")
            wait_until(lambda: self.edge.metric("updraft_local_mapped_bytes") == mapped, what="the one-offs to go")

    def test_leaving_a_stream_cancels_it(self):
        with updraft.Session(self.socket) as session:
            with session.chat("Go back.", max_tokens=400, ignore_eos=True) as stream:
                next(stream)
            wait_until(lambda: self.edge.metric("updraft_edge_requests_in_flight") == 0, what="the request to end")
            for _ in range(50):  # the model may be done with its 400 tokens before the cancel comes
                stream = session.chat("Go back.", max_tokens=400, ignore_eos=True)
                stream.cancel()
                try:
                    stream.result()
                except updraft.Cancelled:
                    return
            self.fail("no cancel came in time")

    def test_views_outlive_the_session(self):
        session = updraft.Session(self.socket)
        view = session.allocate(100000).view
        session.close()
        view[:5] = b"alive"  # would be a fault if the memory were gone
        self.assertEqual(bytes(view[:5]), b"alive")
        wait_until(lambda: self.edge.metric("updraft_local_sessions") == 1, what="the session in the metrics")
        del view
        gc.collect()
        wait_until(lambda: self.edge.metric("updraft_local_sessions") == 0, what="the session's end")

    def png(self, width, height):
        pixels = memoryview(bytes(range(256)) * (width * height * 3 // 256 + 1))[:width * height * 3].cast("B", (height, width, 3))
        return updraft.images.png_of_pixels(pixels)

    def test_pixels_become_a_png_that_holds_them(self):
        png = self.png(50, 20)
        self.assertEqual(png[:8], b"\x89PNG\r\n\x1a\n")
        chunks, at = {}, 8
        while at < len(png):
            size, name = struct.unpack(">I4s", png[at:at + 8])
            content = png[at + 8:at + 8 + size]
            self.assertEqual(struct.unpack(">I", png[at + 8 + size:at + 12 + size])[0], zlib.crc32(name + content))
            chunks[name], at = content, at + 12 + size
        self.assertEqual(chunks[b"IHDR"], struct.pack(">IIBBBBB", 50, 20, 8, 2, 0, 0, 0))
        rows = zlib.decompress(chunks[b"IDAT"])
        want = (bytes(range(256)) * 12)[:50 * 20 * 3]
        self.assertEqual(rows, b"".join(b"\0" + want[y * 150:(y + 1) * 150] for y in range(20)))

    def test_numpy_arrays_and_pil_images_are_taken(self):
        try:
            import numpy
            import PIL.Image
        except ImportError:
            self.skipTest("numpy and Pillow are not installed")
        pixels = numpy.arange(30 * 40 * 3, dtype=numpy.uint8).reshape(30, 40, 3)
        image = PIL.Image.fromarray(pixels)
        with updraft.Session(self.socket) as session:
            # Pillow reads what the package's own encoder wrote, also from a sliced array.
            import io
            for sample in (pixels, pixels[::2, ::2], pixels[:, :, 0]):
                data, mime, used = updraft.Image(sample).encoded(session._piece_or_none)
                self.assertTrue((numpy.asarray(PIL.Image.open(io.BytesIO(data))) == sample).all())
            # Pillow renders into shared memory; no bytes object lies between.
            piece, mime, used = updraft.Image(image).encoded(session._piece_or_none)
            self.assertIsInstance(piece, updraft.Buffer)
            self.assertTrue((numpy.asarray(PIL.Image.open(io.BytesIO(bytes(piece.view[:used])))) == pixels).all())
            piece.release()
            # An array over shared memory is written in place, and ids are read in place.
            buffer = session.allocate(4096)
            buffer.array((4, 4), "int32")[:] = 7
            self.assertEqual(bytes(buffer.view[:64]), struct.pack("<i", 7) * 16)
            ids = numpy.array([5, 6, 7], dtype=numpy.int32)
            self.assertEqual(session.complete(ids, max_tokens=2, temperature=0).result().prompt_tokens, 3)
            for sample in (image, pixels):
                with self.assertRaises(updraft.Unsupported):
                    session.chat([{"role": "user", "content": updraft.Image(sample)}]).result()

    def test_the_bench_measures_through_this_daemon(self):
        done = self.run_example(PROGRAM, "bench", "ipc", "--smoke", "--json", "--socket", self.socket)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        through = [line for line in lines if line["test"] == "daemon"]
        self.assertEqual([line["pace"] for line in through], ["sparse", "blocking", "busy"])
        for line in through:
            self.assertGreater(line["first_token_p50_us"], line["token_back_p50_us"])
            self.assertGreater(line["token_back_p50_us"], 0)
            self.assertGreater(line["first_step_p50_us"], 0)
        targets = {line["name"] for line in lines if line["test"] == "target"}
        for name in ["descriptors one way", "daemon asleep: submit to first step", "token to a sleeping client"]:
            self.assertIn(name, targets)
        self.assertEqual(lines[-1]["test"], "summary")
        # iceoryx is measured where it was installed when the program was built.
        self.assertEqual({line["by"] for line in lines if "by" in line} - {"iceoryx"}, {"updraft", "cache line", "eventfd", "unix socket", "zeromq"})

    def test_a_session_that_asks_for_it_outlives_a_restart_of_the_daemon(self):
        # A daemon of its own: the other tests' must live on.
        stack = Stack(("edge",))
        self.addCleanup(stack.close)
        daemon = stack.start_node("edge")
        socket = daemon.facts["socket"]
        with self.assertRaises(updraft.InvalidArgument):
            updraft.Session(socket, shared_memory=False, reconnect_ms=1000)
        with updraft.Session(socket, reconnect_ms=60000) as session, updraft.Session(socket) as plain:
            placed, later = session.allocate(8), session.allocate(8)
            placed.view[:] = later.view[:] = b"Go back."
            daemon.process.send_signal(signal.SIGSTOP)  # so that it cannot have begun to answer
            stream = session.chat([{"role": "user", "content": placed}], max_tokens=64, temperature=0)
            daemon.kill()
            stack.start_node("edge")
            self.assertEqual(stream.result().text, self.expected["Go back."])
            stream = session.chat([{"role": "user", "content": later}], max_tokens=64, temperature=0)
            self.assertEqual(stream.result().text, self.expected["Go back."])
            with self.assertRaises(updraft.RequestFailed) as lost:
                plain.chat("Go back.").result()  # it has not looked yet
            self.assertEqual(lost.exception.code, "node_lost")
            with self.assertRaises(updraft.SessionLost):
                plain.chat("Go back.")

    def test_ctrl_c_ends_a_wait(self):
        code = ("import os, signal, threading, updraft, sys\n"
                "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                "session = updraft.Session(sys.argv[1])\n"
                "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()\n"
                "session._core.streams[1] = stream = updraft.Stream(session._core, 1)\n"
                "try:\n    next(stream)\nexcept KeyboardInterrupt:\n    print('interrupted')\n")
        done = self.run_example(sys.executable, "-c", code, self.socket)
        self.assertEqual(done.stdout, "interrupted\n")

    def test_the_package_installs_and_brings_its_library(self):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "UPDRAFT_CLIENT_LIBRARY": str(PROGRAM.parent.parent / "lib/libupdraft_client.so.1")}
            done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
                                   "--target", folder, str(ROOT / "edge/client/python")], capture_output=True, text=True, env=env)
            if done.returncode != 0 and "setuptools" in done.stderr:
                self.skipTest("pip cannot fetch setuptools here")
            self.assertEqual(done.returncode, 0, done.stderr)
            env = {k: v for k, v in os.environ.items() if k not in ("UPDRAFT_CLIENT_LIBRARY", "PYTHONPATH")}
            code = f"import sys; sys.path.insert(0, {folder!r}); import updraft; print(updraft.Session({self.socket!r}).models)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd="/")
            self.assertIn("updraft-demo", done.stdout, done.stderr)
