#!/usr/bin/env python3
"""Writes golden/: small images by an outside encoder (PIL) with the pixels that PIL reads back from them.

    pip install pillow; tests/common/image/make_goldens.py

<file> is the image, <file>.rgb its pixels [height, width, 3] as Image.convert("RGB") gives them.
adam7.png and rgb16.png are written by hand (PIL writes neither kind) and read back by PIL like the others.
"""

import pathlib
import struct
import zlib

from PIL import Image

GOLDEN = pathlib.Path(__file__).parent / "golden"
WIDTH, HEIGHT = 19, 13  # no multiple of a JPEG block or an interlacing step


def colour(x: int, y: int) -> tuple[int, int, int]:
    return (x * 13 % 256, y * 19 % 256, (x * 7 + y * 11) % 256)


def picture(mode: str) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.putdata([colour(x, y) for y in range(HEIGHT) for x in range(WIDTH)])
    if mode in ("RGBA", "LA"):
        image = image.convert("L" if mode == "LA" else "RGB").convert(mode)
        alpha = Image.new("L", image.size)
        alpha.putdata([x * y % 256 for y in range(HEIGHT) for x in range(WIDTH)])
        image.putalpha(alpha)
        return image
    return image.quantize(17) if mode == "P" else image.convert(mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(depth: int, interlace: int, data: bytes) -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, 2, 0, 0, interlace))
            + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b""))


def rgb16() -> bytes:
    rows = (b"\0" + b"".join(bytes((c, c)) for x in range(WIDTH) for c in colour(x, y)) for y in range(HEIGHT))
    return png(16, 0, b"".join(rows))


def adam7() -> bytes:
    data = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        for y in range(y0, HEIGHT, dy):
            row = b"".join(bytes(colour(x, y)) for x in range(x0, WIDTH, dx))
            if row:
                data += b"\0" + row
    return png(8, 1, data)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, mode in (("rgb", "RGB"), ("grey", "L"), ("bits1", "1"), ("palette", "P"), ("rgba", "RGBA"), ("grey_alpha", "LA")):
        picture(mode).save(GOLDEN / f"{name}.png")
    (GOLDEN / "adam7.png").write_bytes(adam7())
    (GOLDEN / "rgb16.png").write_bytes(rgb16())
    picture("RGB").save(GOLDEN / "baseline.jpg", quality=90)
    picture("RGB").save(GOLDEN / "progressive.jpg", quality=80, progressive=True)
    picture("RGB").save(GOLDEN / "full_chroma.jpg", quality=95, subsampling=0, comment="x" * 300)
    picture("L").save(GOLDEN / "grey.jpg", quality=85)
    picture("RGB").convert("CMYK").save(GOLDEN / "cmyk.jpg")
    for path in sorted(GOLDEN.glob("*.[pj][np]g")):
        with Image.open(path) as image:
            if image.mode != "CMYK":
                path.with_name(path.name + ".rgb").write_bytes(image.convert("RGB").tobytes())


if __name__ == "__main__":
    main()
