"""What can go wrong, as exceptions: a call that failed (status), or a request that the daemon could not serve (code)."""

from __future__ import annotations


class UpdraftError(Exception):
    """Base of all. status is one of the C library's negative numbers, 0 when the request failed instead of the call."""

    status: int = 0


class LibraryNotFound(UpdraftError, ImportError):
    """libupdraft_client.so is nowhere, or has another ABI."""


class InvalidArgument(UpdraftError, ValueError):
    """An argument makes no sense."""


class NoDaemon(UpdraftError, ConnectionError):
    """Nobody listens at the socket, or the daemon does not answer."""


class Refused(UpdraftError, PermissionError):
    """The daemon does not want this session: user, quota or version."""


class Busy(UpdraftError):
    """As many requests in flight as the daemon allows, or another thread is inside the session."""


class NoRoom(UpdraftError, MemoryError):
    """The session's shared memory is full."""


class SessionLost(UpdraftError, ConnectionError):
    """The daemon is gone, or the session is closed."""


class RequestFailed(UpdraftError):
    """The last event of a request that was not served to its end."""

    def __init__(self, message: str, code: str = "internal", param: str = "", http_status: int = 500, retry_after_ms: int = 0,
                 prompt_tokens: int = 0, limit_tokens: int = 0):
        super().__init__(message)
        self.code = code
        self.param = param
        self.http_status = http_status
        self.retry_after_ms = retry_after_ms
        self.prompt_tokens = prompt_tokens
        self.limit_tokens = limit_tokens


class ContextTooLong(RequestFailed):
    """The prompt and its answer need more than limit_tokens."""


class ModelNotFound(RequestFailed):
    """No such model is served."""


class Unsupported(RequestFailed):
    """The model cannot do it, for example read images."""


class Overloaded(RequestFailed):
    """Worth another try after retry_after_ms."""


class Cancelled(RequestFailed):
    """The request was cancelled."""


_BY_STATUS = {-10: SessionLost, -11: Busy, -12: NoRoom, -13: Refused, -16: Busy, -22: InvalidArgument, -28: NoRoom,
              -90: InvalidArgument, -104: SessionLost, -110: NoDaemon, -111: NoDaemon}
_BY_CODE = {"context_length_exceeded": ContextTooLong, "model_not_found": ModelNotFound, "unsupported": Unsupported,
            "overloaded": Overloaded, "rate_limited": Overloaded, "cancelled": Cancelled}


def of_status(status: int, text: str) -> UpdraftError:
    error = _BY_STATUS.get(status, UpdraftError)(text)
    error.status = status
    return error


def of_code(code: str) -> type[RequestFailed]:
    return _BY_CODE.get(code, RequestFailed)
