"""GGUF files: a writer and a reader, with the Q4_0 and Q8_0 block formats.

Standard library only, so the checks of the committed files run on any machine; a model of two
million weights takes seconds. The rounding follows ggml's reference quantisers bit for bit (its
blocks are golden data in tests/tools/train), because engines compute from exactly these bytes.
Layout and type numbers: the GGUF specification, version 3, little endian.
"""

import struct
from array import array
from dataclasses import dataclass
from math import prod

U32, I32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
           11: "<q", 12: "<d"}
F32, Q4_0, Q8_0 = 0, 2, 8
BLOCK = {F32: (1, 4), Q4_0: (32, 18), Q8_0: (32, 34)}  # type -> (elements, bytes)
ALIGNMENT = 32
BLOCK_FLOATS = struct.Struct("<32f")
Q4_0_BLOCK, Q8_0_BLOCK = struct.Struct("<e16B"), struct.Struct("<e32b")


def to_f32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def scaled(block, scale):
    """(scale as f32, block / scale computed as ggml does: times the f32 inverse, in f32)."""
    scale = to_f32(scale)
    inverse = to_f32(1 / scale) if scale else 0.0
    return scale, BLOCK_FLOATS.unpack(BLOCK_FLOATS.pack(*(v * inverse for v in block)))


def quantize_q8_0(block):
    """32 f32 values -> an f16 scale and 32 signed bytes, rounded half away from zero."""
    scale, values = scaled(block, max(map(abs, block)) / 127)
    return Q8_0_BLOCK.pack(scale, *(int(v + 0.5) if v >= 0 else -int(0.5 - v) for v in values))


def quantize_q4_0(block):
    """32 f32 values -> an f16 scale and 16 bytes: value j in the low half, j + 16 in the high."""
    scale, values = scaled(block, max(block, key=abs) / -8)
    codes = [min(15, int(to_f32(v + 8.5))) for v in values]
    return Q4_0_BLOCK.pack(scale, *(low | high << 4 for low, high in zip(codes, codes[16:])))


QUANTIZERS = {Q4_0: quantize_q4_0, Q8_0: quantize_q8_0}


def quantize(values, kind):
    """Tensor bytes of a flat sequence of floats that are exact in f32."""
    if kind == F32:
        return array("f", values).tobytes()
    encode = QUANTIZERS[kind]
    return b"".join(encode(values[i:i + 32]) for i in range(0, len(values), 32))


def dequantize(data, kind):
    """The values of a tensor's bytes, as a flat array of f32."""
    if kind == F32:
        return array("f", data)
    out = array("f")
    if kind == Q8_0:
        for scale, *codes in Q8_0_BLOCK.iter_unpack(data):
            out.extend(scale * code for code in codes)
        return out
    for scale, *codes in Q4_0_BLOCK.iter_unpack(data):
        out.extend(scale * ((code & 15) - 8) for code in codes)
        out.extend(scale * ((code >> 4) - 8) for code in codes)
    return out


def pack_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def pack_value(kind, value):
    """kind is a scalar type, STRING, or (ARRAY, element type)."""
    if kind == STRING:
        return pack_string(value)
    if isinstance(kind, tuple):
        head = struct.pack("<IQ", kind[1], len(value))
        return head + b"".join(pack_value(kind[1], v) for v in value)
    return struct.pack(SCALARS[kind], value)


def write(path, metadata, tensors):
    """Replaces the file. metadata: [(key, kind, value)]; tensors: [(name, shape, values, type)].

    A shape is row-major (the last number is the length of a row), values are flat.
    """
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, kind, value in metadata:
        number = ARRAY if isinstance(kind, tuple) else kind
        head += [pack_string(key), struct.pack("<I", number), pack_value(kind, value)]
    body, offset = [], 0
    for name, shape, values, kind in tensors:
        if shape[-1] % BLOCK[kind][0]:
            raise ValueError(f"{name}: {shape[-1]} columns do not fill blocks of type {kind}")
        data = quantize(values, kind)
        head += [pack_string(name), struct.pack("<I", len(shape)),
                 struct.pack(f"<{len(shape)}Q", *reversed(shape)), struct.pack("<IQ", kind, offset)]
        body.append(data + bytes(-len(data) % ALIGNMENT))
        offset += len(body[-1])
    start = b"".join(head)
    with open(path, "wb") as file:
        file.write(start + bytes(-len(start) % ALIGNMENT))
        file.write(b"".join(body))


@dataclass
class Tensor:
    kind: int
    shape: list  # row-major
    values: array


@dataclass
class File:
    metadata: dict
    tensors: dict  # name -> Tensor


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if count > len(self.data) - self.at:
            raise ValueError(f"file ends inside a field at byte {self.at}")
        self.at += count
        return self.data[self.at - count:self.at]

    def scalar(self, kind):
        form = SCALARS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self):
        return self.take(self.scalar(U64)).decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            element, count = self.scalar(U32), self.scalar(U64)
            return [self.value(element) for _ in range(count)]
        return self.scalar(kind)


def read(path):
    """A whole file, weights dequantised. For files written here: three tensor types."""
    with open(path, "rb") as file:
        reader = Reader(file.read())
    if reader.take(4) != b"GGUF" or reader.scalar(U32) != 3:
        raise ValueError(f"{path}: not a GGUF version 3 file")
    tensor_count, key_count = reader.scalar(U64), reader.scalar(U64)
    metadata = {}
    for _ in range(key_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar(U32))
    infos = []
    for _ in range(tensor_count):
        name = reader.string()
        dims = [reader.scalar(U64) for _ in range(reader.scalar(U32))]
        infos.append((name, dims[::-1], reader.scalar(U32), reader.scalar(U64)))
    base = reader.at + -reader.at % ALIGNMENT
    tensors = {}
    for name, shape, kind, offset in infos:
        if kind not in BLOCK:
            raise ValueError(f"{path}: tensor {name} has type {kind}, known are {sorted(BLOCK)}")
        elements, size = BLOCK[kind]
        reader.at = base + offset
        tensors[name] = Tensor(kind, shape,
                               dequantize(reader.take(prod(shape) // elements * size), kind))
    return File(metadata, tensors)
