"""A llama-architecture transformer in torch, as small as the demo model needs.

The rotary embedding turns neighbouring pairs (x[2i], x[2i+1]), the form GGUF files of the "llama"
architecture hold, so that export permutes nothing. Embeddings are tied. `quantize` rounds every
matrix to its Q4_0 values in the forward pass and lets gradients through unchanged, so the last
phase of training sees the weights the edge file will have.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Shape:
    vocab: int = 1024
    width: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 6
    head_dim: int = 32
    feed_forward: int = 384
    rope_base: float = 1e8
    eps: float = 1e-5

    def to_dict(self):
        return asdict(self)


def q4_0(weight):
    """The values a Q4_0 file holds for `weight` [rows, columns], columns a multiple of 32."""
    blocks = weight.reshape(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = extreme / -8
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    codes = torch.clamp(torch.floor(blocks * inverse + 8.5), 0, 15) - 8
    return (codes * scale.half().float()).reshape(weight.shape)


class Matrix(nn.Module):
    """y = x W^T, with W [out, in]; W passes through Q4_0 when `quantize` is set."""

    def __init__(self, rows, columns, deviation):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * deviation)
        self.quantize = False

    def value(self):
        if not self.quantize:
            return self.weight
        return self.weight + (q4_0(self.weight.detach()) - self.weight).detach()

    def forward(self, x):
        return F.linear(x, self.value())


class Norm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x, cos, sin):
    """x [batch, heads, tokens, head_dim]; cos, sin [batch, 1, tokens, head_dim / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def attend(q, k, v, chunk=256):
    """Causal attention in bf16, a chunk of queries at a time; q, k, v [batch, heads, tokens, dim].

    For heads this narrow plain matrix products beat torch's fused CPU kernel up to four times.
    """
    with torch.autocast("cpu", enabled=False):
        q, k, v = (q * q.shape[-1] ** -0.5).bfloat16(), k.bfloat16(), v.bfloat16()
        tokens, out = q.shape[2], []
        for begin in range(0, tokens, chunk):
            end = min(tokens, begin + chunk)
            later = torch.full((end - begin, end), float("-inf"), dtype=q.dtype).triu(begin + 1)
            scores = q[:, :, begin:end] @ k[:, :, :end].transpose(-1, -2) + later
            out.append(scores.softmax(-1) @ v[:, :, :end])
        return torch.cat(out, 2)


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.shape = s
        deviation = s.width ** -0.5
        self.attn_norm, self.ffn_norm = Norm(s.width, s.eps), Norm(s.width, s.eps)
        self.attn_q = Matrix(s.heads * s.head_dim, s.width, deviation)
        self.attn_k = Matrix(s.kv_heads * s.head_dim, s.width, deviation)
        self.attn_v = Matrix(s.kv_heads * s.head_dim, s.width, deviation)
        self.attn_output = Matrix(s.width, s.heads * s.head_dim, 0.2 * deviation)
        self.ffn_gate = Matrix(s.feed_forward, s.width, deviation)
        self.ffn_up = Matrix(s.feed_forward, s.width, deviation)
        self.ffn_down = Matrix(s.width, s.feed_forward, 0.02 * deviation)

    def forward(self, x, cos, sin, cache=None):
        s, (batch, tokens, _) = self.shape, x.shape
        h = self.attn_norm(x)
        split = lambda y, n: y.view(batch, tokens, n, s.head_dim).transpose(1, 2)
        q = rotate(split(self.attn_q(h), s.heads), cos, sin)
        k = rotate(split(self.attn_k(h), s.kv_heads), cos, sin)
        v = split(self.attn_v(h), s.kv_heads)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        groups = s.heads // s.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if self.training:
            mixed = attend(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


# How far before a key the tokens lie that a head compares with those up to the query. In
# "HH:MM device quantity value", the value lies 2, 3, 4 and 6 tokens after what identifies it.
MATCH_SCALE = 1.2
MATCHES = ((2, 3, 4, 6), (1, 2, 3), (1, 3), (1,), (2, 4, 5), (1, 3, 4, 5))


def orthonormal(rows, columns):
    """A random matrix with orthonormal rows (rows <= columns), or columns."""
    if rows > columns:
        return orthonormal(columns, rows).T
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


@torch.no_grad()
def begin_with_lookups(model, tokens):
    """Starts the first two layers as the circuit that looks things up, instead of from pure noise.

    Half of the residual stream holds the token itself; the other half has a slot for each of the
    last six tokens. Layer 0: head j attends j + 1 tokens back (a constant embedding component
    drives queries and keys whose fast rotary pairs agree at exactly that distance) and writes what
    it finds into slot j. Layer 1: heads compare slots of a key with slots of the query, in slow
    rotary pairs, which distance hardly turns, and copy the key's token: induction heads, one per
    context that a log line needs. Training sharpens and re-uses them; from noise they would take
    most of the training to appear. Layer 3: two heads look for the token the stream now holds two
    places before a key, as a label stands before its coordinates.

    A word and the same word after a space start close together: to a byte-level BPE they are
    unrelated, but a name in a log (after a space) is the same name in an answer (after a quote).
    """
    s = model.shape
    own, slot_width, drive, fast_pairs = s.width // 2, s.width // 12, 1.5, 5
    frequencies = s.rope_base ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
    slow = [d for i, f in enumerate(frequencies.tolist()) if f < 4e-4 for d in (2 * i, 2 * i + 1)]

    embedding = model.token_embd.weight
    embedding[:, own:] = 0
    ids = {token: i for i, token in enumerate(tokens)}
    for token, i in ids.items():
        bare = ids.get(token.removeprefix("\u0120"))  # how a vocabulary spells the space
        if bare is not None and bare != i:
            embedding[i] = 0.85 * embedding[bare] + 0.53 * embedding[i]
    embedding[:, 0] = 4 * embedding[:, 1:own].std()

    def heads_of(layer):
        return (layer.attn_q.weight.view(s.heads, s.head_dim, s.width),
                layer.attn_k.weight.view(s.kv_heads, s.head_dim, s.width),
                layer.attn_v.weight.view(s.kv_heads, s.head_dim, s.width),
                layer.attn_output.weight.view(s.width, s.heads, s.head_dim))

    read = torch.zeros(slot_width, s.width)
    read[:, 1:own] = orthonormal(slot_width, own - 1)
    slots = torch.eye(s.width)[own:].view(6, slot_width, s.width)
    queries, keys, values, outputs = heads_of(model.blk[0])
    for matrix in (queries, keys, values, outputs):
        matrix *= 0.05
    keys[:, 0:2 * fast_pairs:2, 0] = drive
    values[:, :slot_width] = read
    for head in range(s.heads):
        angle = -frequencies[:fast_pairs] * (head + 1)
        queries[head, 0:2 * fast_pairs:2, 0] = drive * angle.cos()
        queries[head, 1:2 * fast_pairs:2, 0] = drive * angle.sin()
        outputs[own:].view(6, slot_width, s.heads, s.head_dim)[head, :, head, :slot_width] = (
            0.25 * torch.eye(slot_width))
    queries, keys, values, outputs = heads_of(model.blk[1])
    for matrix in (queries, keys, values, outputs):
        matrix *= 0.05
    for head, matches in enumerate(MATCHES):
        for back in matches:
            turn = orthonormal(len(slow), slot_width)
            keys[head, slow] += MATCH_SCALE * turn @ slots[back - 1]
            source = 2.5 * read if back == 1 else slots[back - 2]
            queries[head, slow] += MATCH_SCALE * turn @ source
        values[head, :, 1:own] = orthonormal(s.head_dim, own - 1)
        outputs[1:own, head] = values[head, :, 1:own].T

    queries, keys, values, outputs = heads_of(model.blk[3])
    for head in (0, 1):
        turn = orthonormal(len(slow), slot_width)
        queries[head], keys[head] = queries[head] * 0.05, keys[head] * 0.05
        keys[head, slow] += 2 * turn @ slots[1]
        queries[head, slow] += 2 * 2.5 * turn @ read
        values[head] = 0
        values[head, :, 1:own] = orthonormal(s.head_dim, own - 1)
        outputs[:, head] = 0
        outputs[1:own, head] = values[head, :, 1:own].T


class Cache:
    """Keys and values of one sequence: a prompt at once, then one token at a time."""

    def __init__(self):
        self.entries = {}

    def extend(self, layer, k, v):
        if layer in self.entries:
            old_k, old_v = self.entries[layer]
            k, v = torch.cat((old_k, k), 2), torch.cat((old_v, v), 2)
        self.entries[layer] = (k, v)
        return k, v


class Llama(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.token_embd = Matrix(shape.vocab, shape.width, 0.1)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width, shape.eps)

    def quantize(self, on):
        for module in self.modules():
            if isinstance(module, Matrix):
                module.quantize = on

    def angles(self, positions):
        pairs = torch.arange(0, self.shape.head_dim, 2, dtype=torch.float32)
        frequencies = self.shape.rope_base ** (-pairs / self.shape.head_dim)
        angles = positions.float()[..., None] * frequencies
        return angles.cos()[:, None], angles.sin()[:, None]

    def hidden(self, ids, positions=None, cache=None):
        """ids [batch, tokens] -> normed states [batch, tokens, width]."""
        if positions is None:
            positions = torch.arange(ids.shape[1])[None]
        cos, sin = self.angles(positions)
        x = F.embedding(ids, self.token_embd.value())
        for layer in self.blk:
            x = layer(x, cos, sin, cache)
        return self.output_norm(x)

    def logits(self, states):
        return F.linear(states, self.token_embd.value())


@torch.no_grad()
def greedy(model, prompt, end, limit=80):
    """The ids after `prompt` at temperature 0, without the end token."""
    cache, out = Cache(), []
    ids, position = torch.tensor([prompt]), 0
    while len(out) < limit:
        positions = torch.arange(position, position + ids.shape[1])[None]
        state = model.hidden(ids, positions, cache)[:, -1]
        token = int(model.logits(state).argmax())
        if token == end:
            break
        out.append(token)
        position += ids.shape[1]
        ids = torch.tensor([[token]])
    return out
