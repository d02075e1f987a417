"""A short name for many settings."""

import hashlib
import json
from typing import Any


def digest(values: Any, size: int = 3) -> str:
    """Hexadecimal, two digits a byte; the same for equal values, in whatever order their keys are."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=size).hexdigest()
