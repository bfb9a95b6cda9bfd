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
    kv_heads: int = 3
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
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=tokens > 1)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


def orthonormal(rows, columns):
    """A random matrix with orthonormal rows (rows <= columns)."""
    return torch.linalg.qr(torch.randn(columns, rows))[0].T


@torch.no_grad()
def begin_with_lookbacks(model):
    """Starts the first layers as the circuit that looks things up, instead of from pure noise.

    Layer 0: head j attends j + 1 tokens back. A constant embedding component drives queries and
    keys whose fast rotary pairs agree at exactly that distance; the head writes a projection of
    the token found there into a subspace of its own. Layers 1 and 2: heads match the tokens
    before a key against the tokens up to the query, in slow rotary pairs, which distance hardly
    turns, and copy what the key's token is: induction heads. Training sharpens and re-uses them;
    from noise they would take most of the training to appear.
    """
    s = model.shape
    constant, drive, fast_pairs = 4.0, 1.5, 5
    frequencies = s.rope_base ** (-torch.arange(0, s.head_dim, 2) / s.head_dim)
    slow = [d for i, f in enumerate(frequencies.tolist()) if f < 4e-4 for d in (2 * i, 2 * i + 1)]
    embedding = model.token_embd.weight
    embedding[:, 0] = constant * embedding.std()
    read = orthonormal(s.head_dim, s.width)
    slots = orthonormal(s.heads * s.head_dim, s.width).view(s.heads, s.head_dim, s.width)
    first = model.blk[0]
    for matrix in (first.attn_q, first.attn_k):
        matrix.weight *= 0.1
    queries = first.attn_q.weight.view(s.heads, s.head_dim, s.width)
    keys = first.attn_k.weight.view(s.kv_heads, s.head_dim, s.width)
    values = first.attn_v.weight.view(s.kv_heads, s.head_dim, s.width)
    outputs = first.attn_output.weight.view(s.width, s.heads, s.head_dim)
    keys[:, 0:2 * fast_pairs:2, 0] = drive
    values[:] = read
    for head in range(s.heads):
        angle = -frequencies[:fast_pairs] * (head + 1)
        queries[head, 0:2 * fast_pairs:2, 0] = drive * angle.cos()
        queries[head, 1:2 * fast_pairs:2, 0] = drive * angle.sin()
        outputs[:, head] = 0.3 * slots[head].T
    for layer, matches in ((model.blk[1], ((1,), (1, 2), (1, 3))),
                           (model.blk[2], ((2,), (1, 4), (2, 3)))):
        queries = layer.attn_q.weight.view(s.heads, s.head_dim, s.width)
        keys = layer.attn_k.weight.view(s.kv_heads, s.head_dim, s.width)
        values = layer.attn_v.weight.view(s.kv_heads, s.head_dim, s.width)
        outputs = layer.attn_output.weight.view(s.width, s.heads, s.head_dim)
        for matrix in (layer.attn_q, layer.attn_k):
            matrix.weight *= 0.3
        per_group = s.heads // s.kv_heads
        for group in range(s.kv_heads):
            for back in matches[group % len(matches)]:
                turn = orthonormal(len(slow), s.head_dim)
                keys[group, slow] += 3 * turn @ slots[back - 1]
                source = read if back == 1 else slots[back - 2]
                queries[group * per_group, slow] += 3 * turn @ source
            values[group] = orthonormal(s.head_dim, s.width)
            for head in range(group * per_group, (group + 1) * per_group):
                outputs[:, head] = 0.8 * values[group].T


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
