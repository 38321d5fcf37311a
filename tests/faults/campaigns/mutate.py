"""Damage: from whole files to ones that are cut, flipped, lengthened, or written by somebody who means harm."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

# Samples are taken apart and put together by libyaml where PyYAML has it; what is tested reads them with its own.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

NUMBERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, 10**9)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 255, 10**6, 10**9, 2**63, 2**64, 10**400, 0.0, -0.5, 1e-320, 1e308, float("nan"),
    float("inf"), "", "x", "../outside/secret", "/etc/passwd", "a\0b", "x" * 300, "\ud7ff\u2028", "1e400",
    "\n\n", [], {}, [[]], [1, 2, 3], {"a": 1}, {"": {}}, ["x"] * 50, [None] * 3, [1e308] * 7, [10**400] * 3,
)  # fmt: skip
LINES = (
    '!!python/object/apply:os.system ["touch {canary}"]',
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{canary}]]",
    "!!python/name:os.system",
    "!!python/object/new:type {{args: [a, !!python/tuple [], {{}}]}}",
    "!!timestamp x", "!!int ''", "!!bool maybe", "!!float ''", "!!binary '!'", "!!set {{1, 2}}", "!!omap [a]",
    "!!str [1]", "!!map 3", "!!seq x", "!!null x", "!local x", "&a [*a]", "*a", "<<: 3", "{{<<: [1]}}", "? [1]", "=",
    "0x" + "f" * 4000, "0b" + "1" * 900, "1" * 5000, "59:" * 1500 + "59", "-" * 50, "[" * 500, "{{a: " * 200,
    "2001-13-45", "2001-01-01 25:61:61", "1e999999999", ".inf", ".nan", "0o9", "'", '"\\xZZ"',
    "|9", ">", "%YAML 9.9", "---\n---",
)  # fmt: skip


class Bomb:
    """A pickle that creates a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def damage(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """One to four of the damages that bytes suffer; ``other`` lends pieces."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(found)
        # Headers, indexes and footers are at the ends.
        at = rng.choice(
            (rng.randrange(size + 1), rng.randrange(min(size, 200) + 1), size - rng.randrange(min(size, 200) + 1))
        )
        match rng.randrange(10):
            case 0 if size:
                found[min(at, size - 1)] ^= 1 << rng.randrange(8)
            case 1 if size:
                found[min(at, size - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2 | 3:
                width = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) % 2 ** (8 * width)
                found[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
            case 4:
                del found[at:]
            case 5:
                del found[at : at + rng.choice((1, 4, 16, 500))]
            case 6:
                found[at:at] = rng.randbytes(rng.choice((1, 4, 16, 500)))
            case 7:
                piece = bytes(found[at : at + rng.choice((1, 8, 64, 1000))])
                found[at:at] = piece * rng.choice((1, 2, 50))
            case 8 if other:
                start = rng.randrange(len(other))
                found[at : at + 64] = other[start : start + rng.choice((8, 64, 1000))]
            case _:
                end = at + rng.choice((4, 32, 256))
                found[at:end] = bytes(len(found[at:end]))
    return bytes(found)


def damage_tree(rng: random.Random, tree: Any) -> Any:
    """A copy of nested mappings and lists in which one to three values, keys or items are others."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots = list(_spots(tree))
        if not spots:
            return copy.deepcopy(rng.choice(VALUES))
        holder, key = rng.choice(spots)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(("", "x", "__class__", str(key) + "s", str(key).upper()))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 5, 1000))))
            case 3:
                other, there = rng.choice(spots)
                if (isinstance(other, dict) and there in other) or (isinstance(other, list) and there < len(other)):
                    holder[key] = copy.deepcopy(other[there])
            case 4 if type(holder[key]) in (int, float):
                holder[key] = rng.choice((-holder[key], holder[key] * 1000, rng.choice(NUMBERS), 0.5))
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def _spots(tree: Any) -> Any:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs):
        yield tree, key
        yield from _spots(value)


def damage_yaml(rng: random.Random, data: bytes, canary: Path) -> bytes:
    """YAML with other values, hostile lines or damaged bytes."""
    match rng.randrange(5):
        case 0:
            return damage(rng, data)
        case 1:
            lines = data.decode().splitlines()
            at = rng.randrange(len(lines))
            key = lines[at].partition(":")[0]
            lines[at] = f"{key}: {rng.choice(LINES).format(canary=canary)}"
            return "\n".join(lines).encode()
        case _:
            tree = damage_tree(rng, _tree_of(data))
            try:
                return yaml.dump(tree, Dumper=DUMPER, sort_keys=False).encode()
            except ValueError:  # a number of more digits than Python prints
                return repr(tree)[:100].encode()


@lru_cache(maxsize=100)
def _tree_of(data: bytes) -> Any:
    """What a YAML sample holds; not to be changed."""
    return yaml.load(data, Loader=LOADER)


def damage_json(rng: random.Random, data: bytes) -> bytes:
    """JSON with other values, too deep, or damaged bytes."""
    if not data or rng.randrange(4) == 0:
        return damage(rng, data, b"[" * 5000)
    return json.dumps(damage_tree(rng, json.loads(data))).encode()


def pickles(rng: random.Random, canary: Path) -> bytes:
    """A pickle that runs code where it is opened."""
    bomb: Any = Bomb(canary)
    value = rng.choice((bomb, {"optimizer": bomb}, [bomb] * 3, {"x": [bomb]}))
    return pickle.dumps(value, protocol=rng.choice((0, 1, 2, 4, 5)))


def sign(files: dict[str, bytes], manifest: str) -> None:
    """Make a manifest agree with the files beside it, as somebody who means harm would."""
    try:
        record = json.loads(files[manifest])
        folder = manifest.rpartition("/")[0]
        for name in record["sha256"]:
            if f"{folder}/{name}" in files:
                record["sha256"][name] = hashlib.sha256(files[f"{folder}/{name}"]).hexdigest()
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # it is damaged itself
    files[manifest] = json.dumps(record).encode()
