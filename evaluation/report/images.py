"""Pictures inside the page, as data URIs of bounded size."""

import base64
import io
from pathlib import Path

from PIL import Image, features

from evaluation.report.markup import Markup, tag

LONGEST = 1200
"""Pixels of the longest side."""
LARGE = 60_000
"""Bytes of a PNG above which a picture is compressed with loss, where that is smaller."""


def picture(image: Image.Image | Path, alt: str, longest: int = LONGEST, **attributes: str) -> Markup:
    """An element that shows a picture; a large one is made smaller, and a PNG that is small stays what it is."""
    content = image.read_bytes() if isinstance(image, Path) else None
    if isinstance(image, Path):
        with Image.open(image) as file:
            image = file.convert("RGB")
    if max(image.size) > longest:
        image, content = image.copy(), None
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    width, height = image.size
    return tag("img", src=data_uri(image, content), alt=alt, width=width, height=height, **attributes)


def data_uri(image: Image.Image, content: bytes | None = None) -> str:
    """A picture as a URI, of its bytes as a PNG where they are known."""
    kind, content = "png", content or _encoded(image, "PNG")
    if len(content) > LARGE:
        lossy = "webp" if features.check("webp") else "jpeg"
        smaller = _encoded(image, lossy.upper(), quality=85)
        kind, content = (lossy, smaller) if len(smaller) < len(content) else (kind, content)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def frames(path: Path) -> list[Image.Image]:
    """The pictures of an animation."""
    with Image.open(path) as film:
        found = []
        for k in range(getattr(film, "n_frames", 1)):
            film.seek(k)
            found.append(film.convert("RGB"))
        return found


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
