"""Seeds as names: every stream of random numbers is a pure function of what it is for.

A stream is named by its parts, for instance ``("seed 0", "noise", step, rank)``. Nothing is carried from one step to
the next, so a run that resumes at step n draws exactly what the uninterrupted run drew at step n.
"""

import hashlib
import json
import operator

import torch


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a seed in [0, 2^63), the same on every machine and in every Python process.

    The parts are written as a JSON list, so ``(1, 23)``, ``(12, 3)``, ``(123,)`` and ``("1", 23)`` are four names.

    Raises:
        TypeError: a part is neither an integer nor a string.
    """
    name = json.dumps([_part(part) for part in parts])
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def make_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded with ``derive_seed(*parts)``.

    torch's CPU engine keeps the low 32 bits of a seed (CUDA keeps all 64): two given streams coincide with
    probability 2^-32 there.
    """
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def _part(part: int | str) -> int | str:
    if isinstance(part, str):
        return part
    try:
        return operator.index(part)
    except TypeError:
        raise TypeError(f"a seed is derived from integers and strings, got {part!r} ({type(part).__name__})") from None
