"""Sessions with the edge daemon, the answers as they are written, and pieces of shared memory to render into.

A session belongs to one thread at a time; another thread that enters meanwhile gets Busy (Stream.cancel() may be called
from any). After os.fork() it belongs to
the parent.
"""

from __future__ import annotations

import asyncio
import collections
import ctypes
import dataclasses
import os
import time
import weakref
from typing import Any, AsyncIterator, Iterable, Iterator, Mapping, Sequence, Union

from . import errors
from . import library as lib
from .embeddings import Embeddings
from .images import Image

_SLICE_MS = 100  # how long one wait inside the library may last: Ctrl-C is seen between two
_TIERS = {0: "any", 1: "edge", 2: "cloud"}
_FINISH = {0: None, 1: "stop", 2: "length"}
_TEXT = {"model", "session", "trace", "tier", "residency", "priority"}
_INTEGER = {"max_tokens", "top_k", "seed", "n", "top_logprobs", "deadline_ms", "logprobs", "echo", "ignore_eos", "enable_thinking"}
_NUMBER = {"temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}

Content = Union[str, Image, "Buffer", Sequence[Any]]
Messages = Union[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Token:
    """New text of one choice: whole characters, with the ids that made them. str(token) is the text."""

    text: str
    ids: tuple[int, ...] = ()
    choice: int = 0
    offset: int = 0
    finish: str | None = None  # "stop" or "length" on the choice's last token
    logprobs: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a request runs, and why there."""

    node: str
    tier: str
    model: str
    decision: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole answer; text and finish of choice 0, all of them in texts."""

    text: str
    finish: str | None
    texts: tuple[str, ...]
    ids: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_token_s: float
    total_s: float
    place: Place | None

    def __str__(self) -> str:
        return self.text


class _Core:
    """The C session. Its memory stays mapped until the last view of a buffer is gone, so that no view can dangle."""

    def __init__(self, handle: int):
        self.handle = handle
        self.pid = os.getpid()
        self.closed = False
        self.streams: weakref.WeakValueDictionary[int, Stream] = weakref.WeakValueDictionary()
        self.buffers: weakref.WeakSet[Buffer] = weakref.WeakSet()
        # Arrays over shared memory by id; a memoryview or numpy array keeps its own alive.
        self.arrays: dict[int, weakref.ref[Any]] = {}
        self.waiters: list[asyncio.Future[None]] = []

    def __del__(self):
        self.destroy()

    def destroy(self) -> None:
        handle, self.handle = self.handle, 0
        if handle and self.pid == os.getpid():
            lib.library().updraft_close(handle)

    def array(self, address: int, size: int) -> Any:
        array = (ctypes.c_ubyte * size).from_address(address)
        array._core = self
        key = id(array)
        self.arrays[key] = weakref.ref(array, lambda _: self._array_gone(key))
        return array

    def _array_gone(self, key: int) -> None:
        self.arrays.pop(key, None)
        if self.closed and not self.arrays:
            self.destroy()

    def close(self) -> None:
        self.closed = True
        for buffer in list(self.buffers):
            buffer._array = None
        if not self.arrays:
            self.destroy()

    def need(self) -> int:
        if self.closed:
            error = errors.SessionLost("the session is closed")
            error.status = -104
            raise error
        return self.handle

    def fd(self) -> int:
        return lib.check(lib.library().updraft_fd(self.need()))

    async def readable(self) -> None:
        """Until there may be something to pump, in the running event loop; any number of tasks may wait."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        if not self.waiters:
            loop.add_reader(self.fd(), self._wake, loop)
        self.waiters.append(waiter)
        await waiter

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        # All of them: one task's pump may take another's tokens.
        loop.remove_reader(self.fd())
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def pump(self, timeout_ms: int) -> bool:
        """Takes one event into its stream. False: none within timeout_ms."""
        event = ctypes.POINTER(lib.Event)()
        got = lib.check(lib.library().updraft_next(self.need(), timeout_ms, ctypes.byref(event)))
        if got:
            stream = self.streams.get(event.contents.request)
            if stream is not None:
                stream._take_event(event.contents)
        return bool(got)


class Buffer:
    """A piece of the session's shared memory to write a text or an image into; handed over without a copy.

    `view` is a writable memoryview, array() a numpy array over the same bytes, writer() a file to save into. `used`
    says how many bytes count (all, unless set). A submit takes the buffer: it must not be written any more then.
    """

    def __init__(self, core: _Core, address: int, size: int):
        self._core, self._address, self.size = core, address, size
        self.used = size
        self.holds_ids = False
        self._array = core.array(address, size)
        core.buffers.add(self)

    @property
    def view(self) -> memoryview:
        if self._array is None:
            raise errors.InvalidArgument("the buffer was submitted or released")
        return memoryview(self._array).cast("B")

    def array(self, shape: Any = None, dtype: Any = "uint8") -> Any:
        """A numpy array over the buffer's first bytes, to write pixels or ids into."""
        import math

        import numpy

        dtype = numpy.dtype(dtype)
        shape = (self.size // dtype.itemsize,) if shape is None else shape
        count = shape if isinstance(shape, int) else math.prod(shape)
        return numpy.frombuffer(self.view, dtype, count).reshape(shape)

    def ids(self) -> memoryview:
        """The buffer as int32 token ids, to write a prompt into; Session.complete() then takes it as ids."""
        self.holds_ids = True
        return self.view[: self.size // 4 * 4].cast("i")

    def __len__(self) -> int:
        return self.size

    def writer(self) -> "_Writer":
        """A binary file over the buffer, for PIL's save() and the like; .end tells how far it was written."""
        return _Writer(self.view)

    def release(self) -> None:
        """Gives the piece back unsubmitted; views of it must not be used any more."""
        if self._array is None:
            return
        self._array = None
        if not self._core.closed:
            lib.check(lib.library().updraft_release(self._core.handle, self._address))

    def _take(self) -> None:
        self._array = None

    def __enter__(self) -> "Buffer":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def __del__(self):
        try:
            self.release()
        except errors.UpdraftError:
            pass  # a session used by another thread just now: the piece goes with the session


class _Writer:
    """What PIL needs of a file: write, seek, tell, flush. Writing past the end is an error."""

    def __init__(self, view: memoryview):
        self._view = view
        self._at = 0
        self.end = 0

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        end = self._at + len(data)
        if end > len(self._view):
            raise errors.NoRoom(f"a file of more than the buffer's {len(self._view)} bytes")
        self._view[self._at:end] = data
        self._at = end
        self.end = max(self.end, end)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + (0, self._at, self.end)[whence]
        if at < 0:
            raise errors.InvalidArgument(f"a position of {at}")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        pass


class Stream:
    """An answer on its way: iterate for its tokens (for, or async for in an event loop), or result() for all of it. Leaving it (close, with, del) cancels."""

    def __init__(self, core: _Core, request: int):
        self._core, self._request = core, request
        self._tokens: collections.deque[Token] = collections.deque()
        self._seen: list[Token] = []
        self._error: errors.RequestFailed | None = None
        self._usage: tuple[int, int, int, int, int] | None = None
        self.place: Place | None = None

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        while not self._tokens:
            if self._error is not None:
                raise self._error
            if self._usage is not None:
                raise StopIteration
            self._core.pump(_SLICE_MS)
        return self._tokens.popleft()

    def __aiter__(self) -> AsyncIterator[Token]:
        return self

    async def __anext__(self) -> Token:
        while not self._tokens:
            if self._error is not None:
                raise self._error
            if self._usage is not None:
                raise StopAsyncIteration
            if not self._core.pump(0):
                await self._core.readable()
        return self._tokens.popleft()

    def next(self, timeout_s: float) -> Token | None:
        """The next token, or None when none came within timeout_s or the answer has ended (see `ended`)."""
        deadline = time.monotonic() + timeout_s
        while not self._tokens and not self.ended:
            left_ms = int((deadline - time.monotonic()) * 1000)
            self._core.pump(max(0, min(left_ms, _SLICE_MS)))
            if left_ms <= 0:
                break
        return self._tokens.popleft() if self._tokens else None

    @property
    def ended(self) -> bool:
        return self._error is not None or self._usage is not None

    def cancel(self) -> None:
        """Generation stops; iterating then ends with Cancelled unless the answer was complete."""
        if not self.ended:
            lib.check(lib.library().updraft_cancel(self._core.need(), self._request))

    def result(self) -> Answer:
        """Waits for the end. Errors: RequestFailed, SessionLost."""
        while not self.ended:
            self._core.pump(_SLICE_MS)
        if self._error is not None:
            raise self._error
        assert self._usage is not None
        prompt, completion, cached, first_ns, total_ns = self._usage
        count = 1 + max((t.choice for t in self._seen), default=0)
        texts = tuple("".join(t.text for t in self._seen if t.choice == c) for c in range(count))
        finish = next((t.finish for t in reversed(self._seen) if t.choice == 0 and t.finish), None)
        ids = tuple(i for t in self._seen if t.choice == 0 for i in t.ids)
        return Answer(texts[0], finish, texts, ids, prompt, completion, cached, first_ns / 1e9, total_ns / 1e9, self.place)

    def close(self) -> None:
        if not self._core.closed and self._core.pid == os.getpid():
            try:
                self.cancel()
            except errors.UpdraftError:
                pass  # the daemon is gone, and the request with it
            self._core.streams.pop(self._request, None)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self):
        if not self.ended:
            self.close()

    def _take_event(self, event: lib.Event) -> None:
        if event.kind == lib.STARTED:
            self.place = Place(event.node.decode(), _TIERS.get(event.tier, "any"), event.model.decode(), event.decision.decode())
        elif event.kind == lib.TOKENS:
            text = ctypes.string_at(event.text, event.text_bytes).decode(errors="replace")
            logprobs = tuple(event.logprobs[i].chosen.logprob for i in range(event.logprob_count))
            token = Token(text, tuple(event.ids[:event.id_count]), event.choice, event.offset, _FINISH.get(event.finish), logprobs)
            self._tokens.append(token)
            self._seen.append(token)
        else:
            self._core.streams.pop(self._request, None)
            if event.kind == lib.FINISHED:
                self._usage = (event.prompt_tokens, event.completion_tokens, event.cached_tokens, event.first_token_ns, event.total_ns)
            else:
                code = event.error_code.decode()
                self._error = errors.of_code(code)(event.message.decode(), code, event.param.decode(), event.http_status,
                                                   event.retry_after_ms, event.prompt_tokens, event.limit_tokens)


class _Request:
    """A C request, with what must stay alive until it is submitted."""

    def __init__(self, kind: int):
        self.handle = lib.library().updraft_request_new(kind)
        if not self.handle:
            raise MemoryError("updraft_request_new")
        self.kept: list[Any] = []
        self.placed: list[Buffer] = []

    def __del__(self):
        if getattr(self, "handle", None):
            lib.library().updraft_request_free(self.handle)

    def call(self, name: str, *arguments: Any) -> None:
        lib.check(getattr(lib.library(), name)(self.handle, *arguments))

    def borrow(self, data: Any) -> tuple[int, int]:
        """Address and bytes of a bytes-like object, without a copy when it is contiguous."""
        view = memoryview(data)
        if not view.c_contiguous:
            view = memoryview(view.tobytes())
        view = view.cast("B") if view.nbytes else memoryview(b"")
        self.kept.append(view)
        if not view.nbytes:
            return 0, 0
        if view.readonly:
            address = _readonly_address(view)
        else:
            address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
        return address, view.nbytes

    def ids(self, source: Any) -> tuple[int, int]:
        """Address and count of token ids; an int32 array is read in place."""
        try:
            ids = memoryview(source)
            if ids.format not in ("i", "=i", "<i") or ids.ndim != 1:
                ids = memoryview((ctypes.c_int32 * len(ids))(*ids.tolist()))
        except TypeError:
            values = list(source)
            ids = memoryview((ctypes.c_int32 * len(values))(*values))
        address, size = self.borrow(ids)
        return address, size // 4

    def parts(self, parts: Sequence[Any]) -> None:
        for part in parts:
            if isinstance(part, str):
                self.call("updraft_request_add_part_text", *self.borrow(part.encode()))
            elif isinstance(part, Embeddings):
                kind, rows, dim = part.shape_of()
                if isinstance(part.data, Buffer):
                    part.data.view  # still ours
                    self.placed.append(part.data)
                    self.call("updraft_request_add_placed_part_embeddings", kind, part.data._address, rows, dim)
                else:
                    self.call("updraft_request_add_part_embeddings", kind, self.borrow(part.data)[0], rows, dim)
            else:
                self.call("updraft_request_add_part_ids", *self.ids(part))

    def settings(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if value is None:
                continue
            if name in _TEXT:
                self.call("updraft_request_set_text", name.encode(), str(value).encode())
            elif name in _INTEGER:
                self.call("updraft_request_set_integer", name.encode(), int(value))
            elif name in _NUMBER:
                self.call("updraft_request_set_number", name.encode(), float(value))
            elif name == "stop":
                for stop in [value] if isinstance(value, str) else value:
                    self.call("updraft_request_add_stop", *self.borrow(stop.encode()))
            elif name == "logit_bias":
                for token_id, bias in dict(value).items():
                    self.call("updraft_request_add_logit_bias", int(token_id), float(bias))
            else:
                known = ", ".join(sorted(_TEXT | _INTEGER | _NUMBER | {"stop", "logit_bias"}))
                raise errors.InvalidArgument(f"there is no setting {name!r} (known: {known})")

    def content(self, content: Any, allocate: Any, allocate_once: Any) -> None:
        for part in [content] if isinstance(content, (str, Image, Buffer)) or not isinstance(content, Sequence) else content:
            if isinstance(part, Mapping):  # OpenAI's shape
                if part.get("type") != "text":
                    raise errors.InvalidArgument(f"a part of type {part.get('type')!r}: give text as str and images as updraft.Image")
                part = part["text"]
            if isinstance(part, str):
                self.call("updraft_request_add_text", *self.borrow(part.encode()))
            elif isinstance(part, Buffer):
                part.view  # still ours
                self.placed.append(part)
                self.call("updraft_request_add_placed_text", part._address, part.used)
            else:
                image = part if isinstance(part, Image) else Image(part)
                data, mime, used = image.encoded(allocate_once if image.once else allocate)
                if image.once and used is None:
                    view = memoryview(data).cast("B")
                    data, used = allocate_once(view.nbytes), view.nbytes
                    data.view[:] = view
                if used is not None:
                    self.placed.append(data)
                    self.call("updraft_request_add_placed_image", mime.encode(), data._address, used)
                else:
                    self.call("updraft_request_add_image", mime.encode(), *self.borrow(data))


class _PyBuffer(ctypes.Structure):
    _fields_ = [("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t), ("itemsize", ctypes.c_ssize_t),
                ("readonly", ctypes.c_int), ("ndim", ctypes.c_int), ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p),
                ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p)]


def _readonly_address(view: memoryview) -> int:
    """Where a read-only view's bytes lie, through CPython's buffer protocol (PEP 3118)."""
    raw = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(raw), 0)
    address = raw.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(raw))
    return address


class Session:
    """A session with the edge daemon. `socket`: its path, by default the user's own daemon; `payload_bytes`: shared memory
    for texts and images. Errors: NoDaemon, Refused, InvalidArgument, LibraryNotFound.

    `reconnect_ms` (0: never, at most 60000): how long a lost session tries to connect again at the same path, instead of
    ending with SessionLost. Every request in flight then ends exactly once, and no token comes twice or is left out. The
    same daemon goes on with an answer where it stood (one of more than 256 KiB so far fails with code "node_lost"); after a
    restart a request runs anew when none of its tokens have come here (the daemon that died may have run it, unseen), else
    it fails with "node_lost", as all do when nobody comes in time. While it tries, one wait lasts up to reconnect_ms:
    Ctrl-C and an event loop's other tasks wait as long."""

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, client_name: str = "python", payload_bytes: int = 0,
                 shared_memory: bool = True, reconnect_ms: int = 0):
        handle = ctypes.c_void_p()
        path = None if socket is None else os.fsencode(socket)
        lib.check(lib.library().updraft_connect_reconnecting(path, client_name.encode(), payload_bytes,
                                                             0 if shared_memory else lib.NO_SHARED_MEMORY, reconnect_ms,
                                                             ctypes.byref(handle)))
        assert handle.value
        self._core = _Core(handle.value)

    @property
    def models(self) -> dict[str, int]:
        """Names of the served models, each with its context in tokens."""
        library, handle = lib.library(), self._core.need()
        return {library.updraft_model_name(handle, i).decode(): library.updraft_model_context_tokens(handle, i)
                for i in range(library.updraft_model_count(handle))}

    def allocate(self, size: int) -> Buffer:
        """Errors: NoRoom."""
        address = ctypes.c_void_p()
        lib.check(lib.library().updraft_allocate(self._core.need(), size, ctypes.byref(address)))
        assert address.value
        return Buffer(self._core, address.value, size)

    def chat(self, messages: Messages, **settings: Any) -> Stream:
        """Asks; iterate the stream for tokens. `messages` is a question, or [{"role": ..., "content": ...}] where content is a
        text, an Image, a Buffer, or a list of these. Settings as in OpenAI's API: max_tokens, temperature, stop, seed, ..."""
        request = _Request(lib.CHAT)
        request.settings(settings)
        for message in [{"role": "user", "content": messages}] if isinstance(messages, str) else messages:
            request.call("updraft_request_add_message", str(message["role"]).encode())
            request.content(message["content"], self._piece_or_none, self._piece_once)
        return self._submit(request)

    def embedding_dim(self, model: str | None = None) -> int:
        """Values of one row of input embeddings that a model takes, by default the first; 0: it takes none here."""
        library, handle = lib.library(), self._core.need()
        for i in range(library.updraft_model_count(handle)):
            if model is None or library.updraft_model_name(handle, i).decode() == model:
                return library.updraft_model_embedding_dim(handle, i)
        return 0

    def complete(self, prompt: str | Iterable[int] | Buffer | Embeddings | Sequence[Any], **settings: Any) -> Stream:
        """Continues a text or token ids (a list, or an int32 array, which is read in place) as they are. A Buffer is
        handed over without a copy: ids when they were written through its ids(), UTF-8 text otherwise. Embeddings stand in
        place of tokens; a list that holds a text or Embeddings is one prompt of parts: texts, lists of ids, Embeddings."""
        request = _Request(lib.COMPLETION)
        request.settings(settings)
        if isinstance(prompt, Embeddings):
            request.parts([prompt])
        elif isinstance(prompt, (list, tuple)) and any(isinstance(part, (str, Embeddings)) for part in prompt):
            request.parts(prompt)
        elif isinstance(prompt, Buffer):
            prompt.view  # still ours
            request.placed.append(prompt)
            if prompt.holds_ids:
                request.call("updraft_request_add_placed_prompt_ids", prompt._address, prompt.used // 4)
            else:
                request.call("updraft_request_add_placed_prompt", prompt._address, prompt.used)
        elif isinstance(prompt, str):
            request.call("updraft_request_add_prompt", *request.borrow(prompt.encode()))
        else:
            request.call("updraft_request_add_prompt_ids", *request.ids(prompt))
        return self._submit(request)

    def fileno(self) -> int:
        """A descriptor for select, selectors or an event loop: readable while a stream's next(0) would take something."""
        return self._core.fd()

    def close(self) -> None:
        """Ends the session now. While views of its buffers are alive, the daemon's side stays until they go."""
        self._core.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _piece_or_none(self, size: int) -> Buffer | None:
        try:
            return self.allocate(size)
        except errors.NoRoom:
            return None

    def _piece_once(self, size: int) -> Buffer:
        # Freed with its request, so no view of it is ever given away.
        address = ctypes.c_void_p()
        lib.check(lib.library().updraft_allocate_once(self._core.need(), size, ctypes.byref(address)))
        assert address.value
        return Buffer(self._core, address.value, size)

    def _submit(self, request: _Request) -> Stream:
        request_id = ctypes.c_uint64()
        lib.check(lib.library().updraft_submit(self._core.need(), request.handle, ctypes.byref(request_id)))
        for buffer in request.placed:
            buffer._take()
        stream = Stream(self._core, request_id.value)
        self._core.streams[request_id.value] = stream
        return stream
