"""The demo model's tokenizer: a byte-level BPE learned from generated conversations.

Needs the `tokenizers` package. The pre-tokenizer is the one GGUF files call "llama-bpe", so any
engine that reads Llama 3 files splits text the same way. Words are learned from digit-free text;
the hundred two-digit numbers are added afterwards, so that hours, minutes and values are one or
two tokens each and no arbitrary subset of longer numbers gets a token of its own.
"""

import json
import random
import re

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import conversations

PRE = "llama-bpe"
PATTERN = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
           r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, IM_START, IM_END)


def byte_alphabet():
    """The 256 printable stand-ins for bytes, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(extra)) for b in range(256)]


def build(vocab, merges):
    """A `tokenizers` object from a token -> id map and a list of (left, right)."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def training_text(seed):
    """Pieces of generated text without digits, and every listed word often enough to stay whole."""
    rng = random.Random(f"tokenizer/{seed}")
    texts = []
    for _ in range(6000):
        conversation = conversations.train_instructions(rng, 1)
        texts += (conversation.system, conversation.turns[0].user, conversation.answer)
    for _ in range(500):
        conversation = conversations.train_logs(rng, 10, 4)
        texts += (text for turn in conversation.turns for text in (turn.user, turn.answer))
    words = (*conversations.DEVICES, *conversations.APPS, *conversations.QUANTITIES,
             *conversations.EVENTS, *" ".join(conversations.LABELS).split())
    texts += [f"{word} {word}\n" * 300 for word in dict.fromkeys(words)]
    spoken = (*conversations.PHRASES, *conversations.SYSTEMS,
              *(text for forms, answer in conversations.SMALL_TALK for text in (*forms, answer)))
    texts += [f"{text}\n" * 30 for text in spoken]
    for text in texts:
        yield from re.split(r"\d+", text)


def learn(size, seed):
    """Returns (tokens in id order, merges as pairs). The last three tokens are the specials."""
    learned = build({}, [])
    trainer = trainers.BpeTrainer(vocab_size=size - 100 - len(SPECIALS), show_progress=False,
                                  initial_alphabet=byte_alphabet(), special_tokens=[])
    learned.train_from_iterator(training_text(seed), trainer)
    merges = [tuple(merge) for merge in json.loads(learned.to_str())["model"]["merges"]]
    merges += [(str(i // 10), str(i % 10)) for i in range(100)]
    tokens = byte_alphabet() + [left + right for left, right in merges]
    assert len(tokens) == len(set(tokens)) == size - len(SPECIALS), len(tokens)
    return tokens + list(SPECIALS), merges


class ChatTokenizer:
    """Encodes text, and conversations in the ChatML form of the model's template."""

    def __init__(self, tokens, merges):
        self.tokens, self.merges = list(tokens), [tuple(m) for m in merges]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.core = build({t: i for t, i in self.ids.items() if t not in SPECIALS}, self.merges)
        self.start, self.end = self.ids[IM_START], self.ids[IM_END]

    def encode(self, text):
        return self.core.encode(text).ids

    def decode(self, ids):
        return self.core.decode(list(ids))

    def turn(self, role, content):
        return [self.start, *self.encode(f"{role}\n{content}"), self.end, *self.encode("\n")]

    def prompt(self, messages):
        """Ids of the messages and of the opening of the assistant's answer."""
        ids = [i for m in messages for i in self.turn(m["role"], m["content"])]
        return ids + [self.start, *self.encode("assistant\n")]

    def training_ids(self, conversation):
        """(ids, flags): a flag is 1 where the token is part of an answer (its end included)."""
        ids, flags = [], []
        if conversation.system:
            ids += self.turn("system", conversation.system)
        for turn in conversation.turns:
            ids += self.turn("user", turn.user) + [self.start, *self.encode("assistant\n")]
            flags += [0] * (len(ids) - len(flags))
            ids += [*self.encode(turn.answer), self.end]
            flags += [1] * (len(ids) - len(flags))
            ids += self.encode("\n")
            flags += [0] * (len(ids) - len(flags))
        return ids, flags

    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"tokens": self.tokens, "merges": self.merges}, file, ensure_ascii=False)

    @staticmethod
    def load(path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        return ChatTokenizer(data["tokens"], data["merges"])
