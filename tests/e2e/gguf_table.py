"""The embedding table of a GGUF file whose table is Q4_0, as the demo model's is: enough to hand a model its own rows."""

import array
import struct

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of GGUF's fixed-size values
_Q4_0 = 2
_BLOCK_VALUES, _BLOCK_BYTES = 32, 18


class Table:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.file = file.read()
        self.at = 8
        tensors, keys = self.take("<QQ")
        for _ in range(keys):
            self.text()
            self.skip_value(*self.take("<I"))
        found = None
        for _ in range(tensors):
            name = self.text()
            shape = self.take(f"<{self.take('<I')[0]}Q")
            kind, offset = self.take("<IQ")
            if name == b"token_embd.weight":
                found = (shape, kind, offset)
        (self.dim, self.rows), kind, offset = found
        assert kind == _Q4_0, f"the table is of type {kind}"
        self.first = -(-self.at // 32) * 32 + offset

    def take(self, form):
        values = struct.unpack_from(form, self.file, self.at)
        self.at += struct.calcsize(form)
        return values

    def text(self):
        (size,) = self.take("<Q")
        self.at += size
        return self.file[self.at - size:self.at]

    def skip_value(self, kind):
        if kind == 8:
            self.text()
        elif kind == 9:
            element, count = self.take("<IQ")
            for _ in range(count):
                self.skip_value(element)
        else:
            self.at += _SIZES[kind]

    def row(self, token):
        """Each block is a scale of 16 bits and 32 numbers of four, low halves first: scale * (number - 8)."""
        out = []
        start = self.first + token * self.dim // _BLOCK_VALUES * _BLOCK_BYTES
        for at in range(start, start + self.dim // _BLOCK_VALUES * _BLOCK_BYTES, _BLOCK_BYTES):
            (scale,) = struct.unpack_from("<e", self.file, at)
            numbers = self.file[at + 2:at + _BLOCK_BYTES]
            out += [scale * ((n & 15) - 8) for n in numbers] + [scale * ((n >> 4) - 8) for n in numbers]
        return out

    def rows_of(self, tokens):
        """float32 [tokens, dim], as a memoryview."""
        values = array.array("f", [value for token in tokens for value in self.row(token)])
        return memoryview(values).cast("B").cast("f", [len(tokens), self.dim])
