"""libupdraft_client.so through ctypes: where it is found, and the shapes of updraft_client.h."""

from __future__ import annotations

import ctypes
import os
import pathlib
from ctypes import POINTER, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p

from . import errors

ABI = 1
CHAT, COMPLETION = 0, 1
NO_SHARED_MEMORY = 1
STARTED, TOKENS, FINISHED, FAILED = 1, 2, 3, 4
NAME = "libupdraft_client.so.1"


class Logprob(ctypes.Structure):
    _fields_ = [("id", c_int32), ("logprob", c_float), ("text", c_void_p), ("text_bytes", c_uint64)]


class Position(ctypes.Structure):
    _fields_ = [("chosen", Logprob), ("top", POINTER(Logprob)), ("top_count", c_uint64)]


class Event(ctypes.Structure):
    _fields_ = [("request", c_uint64), ("kind", c_int32), ("choice", c_int32), ("offset", c_int32), ("finish", c_int32),
                ("ids", POINTER(c_int32)), ("id_count", c_uint64), ("text", c_void_p), ("text_bytes", c_uint64),
                ("logprobs", POINTER(Position)), ("logprob_count", c_uint64), ("node", c_char_p), ("model", c_char_p),
                ("decision", c_char_p), ("tier", c_int32), ("prompt_tokens", c_int32), ("completion_tokens", c_int32),
                ("cached_tokens", c_int32), ("queued_ns", c_int64), ("first_token_ns", c_int64), ("total_ns", c_int64),
                ("error_code", c_char_p), ("message", c_char_p), ("param", c_char_p), ("http_status", c_int32),
                ("retry_after_ms", c_int32), ("limit_tokens", c_int32)]


_SIGNATURES = {
    "updraft_version": (c_char_p, []),
    "updraft_abi_version": (c_uint32, []),
    "updraft_error_text": (c_char_p, []),
    "updraft_connect": (c_int, [c_char_p, c_char_p, c_uint64, c_uint32, POINTER(c_void_p)]),
    "updraft_connect_reconnecting": (c_int, [c_char_p, c_char_p, c_uint64, c_uint32, c_int32, POINTER(c_void_p)]),
    "updraft_close": (None, [c_void_p]),
    "updraft_model_count": (c_uint32, [c_void_p]),
    "updraft_model_name": (c_char_p, [c_void_p, c_uint32]),
    "updraft_model_context_tokens": (c_int32, [c_void_p, c_uint32]),
    "updraft_model_embedding_dim": (c_int32, [c_void_p, c_uint32]),
    "updraft_requests_max": (c_uint32, [c_void_p]),
    "updraft_allocate": (c_int, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "updraft_release": (c_int, [c_void_p, c_void_p]),
    "updraft_request_new": (c_void_p, [c_int]),
    "updraft_allocate_once": (c_int, [c_void_p, c_uint64, POINTER(c_void_p)]),
    "updraft_request_free": (None, [c_void_p]),
    "updraft_request_set_text": (c_int, [c_void_p, c_char_p, c_char_p]),
    "updraft_request_set_integer": (c_int, [c_void_p, c_char_p, c_int64]),
    "updraft_request_set_number": (c_int, [c_void_p, c_char_p, c_double]),
    "updraft_request_add_stop": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_logit_bias": (c_int, [c_void_p, c_int32, c_double]),
    "updraft_request_add_message": (c_int, [c_void_p, c_char_p]),
    "updraft_request_add_text": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_image": (c_int, [c_void_p, c_char_p, c_void_p, c_uint64]),
    "updraft_request_add_placed_text": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_placed_image": (c_int, [c_void_p, c_char_p, c_void_p, c_uint64]),
    "updraft_request_add_prompt": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_prompt_ids": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_placed_prompt": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_placed_prompt_ids": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_part_text": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_part_ids": (c_int, [c_void_p, c_void_p, c_uint64]),
    "updraft_request_add_part_embeddings": (c_int, [c_void_p, c_int, c_void_p, c_uint64, c_uint64]),
    "updraft_request_add_placed_part_embeddings": (c_int, [c_void_p, c_int, c_void_p, c_uint64, c_uint64]),
    "updraft_submit": (c_int, [c_void_p, c_void_p, POINTER(c_uint64)]),
    "updraft_cancel": (c_int, [c_void_p, c_uint64]),
    "updraft_fd": (c_int, [c_void_p]),
    "updraft_next": (c_int, [c_void_p, c_int, POINTER(POINTER(Event))]),
}


def candidates() -> list[str]:
    """Where the library is looked for, first come first: $UPDRAFT_CLIENT_LIBRARY (alone when set), beside this file (an
    installed wheel that brought it), the build folder of the source tree, then the system's own places."""
    named = os.environ.get("UPDRAFT_CLIENT_LIBRARY")
    if named:
        return [named]
    here = pathlib.Path(__file__).resolve().parent
    places = [here / NAME]
    if here.parents[0].name == "python" and len(here.parents) > 3:  # edge/client/python/updraft of a source tree
        places.append(here.parents[3] / "build/lib" / NAME)
    return [str(place) for place in places if place.exists()] + [NAME]


def _load() -> ctypes.CDLL:
    tried = []
    for place in candidates():
        try:
            library = ctypes.CDLL(place)
            break
        except OSError as error:
            tried.append(str(error))
    else:
        raise errors.LibraryNotFound("libupdraft_client.so cannot be loaded: " + "; ".join(tried) +
                                     " (build the target updraft_client_shared, or set UPDRAFT_CLIENT_LIBRARY)")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise errors.LibraryNotFound(f"{place} has no {name}")
        function.restype, function.argtypes = result, arguments
    if library.updraft_abi_version() != ABI:
        raise errors.LibraryNotFound(f"{place} has ABI {library.updraft_abi_version()}, this package needs {ABI}")
    return library


_loaded: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        _loaded = _load()
    return _loaded


def check(status: int) -> int:
    """Raises what a negative status says; returns it otherwise."""
    if status < 0:
        raise errors.of_status(status, library().updraft_error_text().decode(errors="replace"))
    return status


__all__ = ["Event", "byref", "check", "library"]
