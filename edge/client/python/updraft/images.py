"""Images on their way into a request: encoded files as they are, pixels (numpy, PIL) encoded straight into shared memory."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from . import errors

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}  # channels -> PNG's colour type: grey, RGB, RGBA


class Image:
    """An image part. `data` is an encoded PNG or JPEG (any bytes-like object, or a Buffer that was rendered into), pixels as
    a uint8 array [height, width] or [height, width, 1, 3 or 4], or a PIL image.

    raw: pixels [height, width, 3] or a PIL image are handed over as they are instead of as a PNG. once: for a large image, in
    memory of its own that is sealed before it is handed over and given back after the answer, instead of in the session's."""

    def __init__(self, data: Any, mime: str | None = None, *, raw: bool = False, once: bool = False):
        self.data = data
        self.mime = mime
        self.raw = raw
        self.once = once

    @classmethod
    def open(cls, path: Any) -> "Image":
        with open(path, "rb") as file:
            return cls(file.read())

    def encoded(self, allocate: Any) -> tuple[Any, str, int | None]:
        """(data, mime, bytes): data is bytes-like, or a piece of shared memory of which `bytes` are filled. allocate(bytes)
        gives such a piece, or None when there is no room."""
        data = self.data
        if hasattr(data, "_take"):  # a Buffer
            return data, self.mime or mime_of(data.view), data.used
        pil = hasattr(data, "save") and hasattr(data, "mode")
        if self.raw:
            return raw_pixels(data, pil)
        if pil:
            return _save_pil(data, self.mime, allocate)
        try:
            view = memoryview(data)
        except TypeError:
            raise errors.InvalidArgument(f"a {type(data).__name__} is no image: give encoded bytes, a uint8 array or a PIL image") from None
        if view.ndim > 1:
            return png_of_pixels(view), "image/png", None
        return view, self.mime or mime_of(view), None


def mime_of(data: Any) -> str:
    """By the file's first bytes. Errors: neither PNG nor JPEG."""
    head = bytes(memoryview(data).cast("B")[:8])
    if head == _PNG:
        return "image/png"
    if head[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    raise errors.InvalidArgument("the image is neither PNG nor JPEG (for pixels give a uint8 array [height, width, channels])")


def raw_pixels(data: Any, pil: bool) -> tuple[Any, str, None]:
    """Pixels as they are, with the type that names their size. Errors: not uint8 [height, width, 3]."""
    if pil:
        width, height, data = data.width, data.height, data.convert("RGB").tobytes()
    else:
        view = memoryview(data)
        if view.format != "B" or view.ndim != 3 or view.shape[2] != 3:
            raise errors.InvalidArgument(f"raw pixels must be uint8 [height, width, 3], not {view.format} {view.shape}")
        height, width = view.shape[:2]
        data = view if view.c_contiguous else view.tobytes()
    return data, f"image/x-raw-rgb;width={width};height={height}", None


def png_of_pixels(pixels: memoryview) -> bytes:
    """PNG of a uint8 array [height, width] or [height, width, channels], lightly compressed (RFC 2083)."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.format != "B" or pixels.ndim not in (2, 3) or channels not in _COLOUR_TYPES or 0 in pixels.shape:
        raise errors.InvalidArgument(f"pixels must be uint8 [height, width] or [height, width, 1, 3 or 4], not {pixels.format} {pixels.shape}")
    height, width = pixels.shape[:2]
    rows = pixels if pixels.c_contiguous else memoryview(pixels.tobytes())
    flat = rows.cast("B")
    packer = zlib.compressobj(1)
    packed = []
    stride = width * channels
    for row in range(height):
        packed.append(packer.compress(b"\0"))  # filter: none
        packed.append(packer.compress(flat[row * stride:(row + 1) * stride]))
    packed.append(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"".join(packed)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(name)))


def _save_pil(image: Any, mime: str | None, allocate: Any) -> tuple[Any, str, int | None]:
    import io

    mime = mime or "image/png"
    options = {"format": "PNG", "compress_level": 1} if mime == "image/png" else {"format": "JPEG", "quality": 90}
    # Pixels that do not compress become a little larger than they were.
    bound = image.width * image.height * len(image.getbands()) * 17 // 16 + 65536
    piece = allocate(bound)
    if piece is not None:
        writer = piece.writer()
        try:
            image.save(writer, **options)
            piece.used = writer.end
            return piece, mime, piece.used
        except BaseException:
            piece.release()
            raise
    file = io.BytesIO()
    image.save(file, **options)
    return file.getbuffer(), mime, None
