"""Input embeddings: rows of numbers that a model takes in place of tokens."""

from __future__ import annotations

from typing import Any

from . import errors

_TYPES = {"f32": (0, 4), "f16": (1, 2), "bf16": (2, 2)}
_FORMATS = {"f": "f32", "e": "f16"}  # of the buffer protocol; it knows no bfloat16


class Embeddings:
    """Rows of input embeddings [rows, Session.embedding_dim()] in a prompt.

    `data` is a 2-D float32 or float16 array (numpy's, or any with the buffer protocol; copied once, straight into shared
    memory), or a Buffer that was written through its array(), handed over without a copy: `dim` then says how many values
    a row has and `dtype` what they are. bfloat16 is handed over as its 16 bits, a uint16 array with dtype="bf16".
    Values must be finite."""

    def __init__(self, data: Any, *, dim: int | None = None, dtype: str | None = None):
        if dtype is not None and dtype not in _TYPES:
            raise errors.InvalidArgument(f"embeddings of type {dtype!r}: known are {', '.join(_TYPES)}")
        self.data = data
        self.dim = dim
        self.dtype = dtype

    def shape_of(self) -> tuple[int, int, int]:
        """(the C library's number of the type, rows, values of one row)."""
        if hasattr(self.data, "_take"):  # a Buffer
            kind, size = _TYPES[self.dtype or "f32"]
            if not self.dim or self.dim < 0 or self.data.used % (self.dim * size):
                raise errors.InvalidArgument(f"a buffer of {self.data.used} bytes is no whole number of rows of {self.dim} values")
            return kind, self.data.used // (self.dim * size), self.dim
        try:
            view = memoryview(self.data)
        except (TypeError, ValueError):
            raise errors.InvalidArgument(f"a {type(self.data).__name__} holds no embeddings: give a float32 or float16 array [rows, values]") from None
        letter = view.format.lstrip("=<@")
        dtype = "bf16" if letter == "H" and self.dtype == "bf16" else _FORMATS.get(letter)
        if view.ndim != 2 or dtype is None or self.dtype not in (None, dtype) or self.dim not in (None, view.shape[1]):
            raise errors.InvalidArgument(f"embeddings must be float32 or float16 [rows, values] (or uint16 with dtype=\"bf16\"), not {view.format} {view.shape}")
        return _TYPES[dtype][0], view.shape[0], view.shape[1]
