"""Slow, plain tokenizers that follow the published algorithms, to check the fast ones against.

Byte-level BPE: Radford et al. 2019. SentencePiece's BPE: Kudo and Richardson 2018, as llama.cpp carries it
out: join the neighbours that make the known piece of the highest score, leftmost first, until none do;
unknown pieces become bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import regex
from support.gguf_files import byte_alphabet

SPACE = "\u2581"


def split_special(text: str, special: Sequence[str]) -> list[tuple[str, bool]]:
    """Cuts out the special tokens, the longest at each place; pieces with whether they are special."""
    if not special:
        return [(text, False)]
    pattern = "|".join(regex.escape(token) for token in sorted(special, key=len, reverse=True))
    pieces = regex.split(f"({pattern})", text)
    return [(piece, index % 2 == 1) for index, piece in enumerate(pieces) if piece]


def byte_level_bpe(
    text: str,
    ids: Mapping[str, int],
    merges: Sequence[str],
    patterns: Sequence[str],
    special: Sequence[str],
    ignore_merges: bool = False,
) -> list[int]:
    """Ids of a text under byte-level BPE; bytes that are no token vanish."""
    ranks = {tuple(rule.split(" ", 1)): rank for rank, rule in enumerate(merges)}
    alphabet = byte_alphabet()
    found = []
    for piece, is_special in split_special(text, special):
        if is_special:
            found.append(ids[piece])
            continue
        words = [piece]
        for pattern in patterns:
            words = [part for word in words for part in _isolated(pattern, word)]
        for word in words:
            symbols = [alphabet[byte] for byte in word.encode()]
            if ignore_merges and "".join(symbols) in ids:
                found.append(ids["".join(symbols)])
                continue
            while len(symbols) > 1:
                rank, place = min(
                    (ranks.get((a, b), 1 << 60), i) for i, (a, b) in enumerate(itertools.pairwise(symbols))
                )
                if rank == 1 << 60:
                    break
                symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
            found += [ids[symbol] for symbol in symbols if symbol in ids]
    return found


def _isolated(pattern: str, text: str) -> list[str]:
    """Matches and the gaps between them, in order."""
    parts, end = [], 0
    for match in regex.finditer(pattern, text):
        parts += [text[end : match.start()], match.group()]
        end = match.end()
    return [part for part in (*parts, text[end:]) if part]


def sentencepiece_bpe(
    text: str,
    ids: Mapping[str, int],
    scores: Sequence[float],
    special: Sequence[str],
    space_prefix: bool = False,
) -> list[int]:
    """Ids of a text under SentencePiece's BPE with byte fallback."""
    found = []
    for piece, is_special in split_special(text, special):
        if is_special:
            found.append(ids[piece])
            continue
        symbols = list(((" " if space_prefix else "") + piece).replace(" ", SPACE))
        while len(symbols) > 1:
            pairs = [(i, a + b) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
            known = [(-scores[ids[joined]], i, joined) for i, joined in pairs if joined in ids]
            if not known:
                break
            _, place, joined = min(known)
            symbols[place : place + 2] = [joined]
        for symbol in symbols:
            if symbol in ids:
                found.append(ids[symbol])
            else:
                found += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found
