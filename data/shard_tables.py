"""What lies where in tar shards: found by reading each once, and kept in small files."""

import hashlib
import io
import json
import mmap
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.folder import is_image
from data.holdout import hash_names


class ShardTable(NamedTuple):
    """The samples of a shard, in its order.

    Attributes:
        extents: first byte and length of each image, int64 (N, 2).
        hashes: of the images' names, int64 (N,); see ``data.holdout``.
        labels: int64, classes (N,) or attributes (N, A); (N, 0) where there are none.
    """

    extents: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray


def find_shards(root: str) -> list[str]:
    """Paths or URLs of the shards, in their order.

    Raises:
        FileNotFoundError: there are none.
    """
    path = Path(root).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.glob("*.tar") if not file.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"there are no shards in {path}: looked for *.tar")
        return found
    if "{" in root:
        _require_webdataset(root)
        from braceexpand import braceexpand

        found = list(braceexpand(root))
    else:
        found = [root]
    missing = [url for url in found if not is_remote(url) and not Path(url).expanduser().is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(found)} shards are missing, the first is {missing[0]}: give a folder of .tar "
            "files, one .tar, or a pattern such as faces-{000..012}.tar"
        )
    return found


def is_remote(url: str) -> bool:
    """Whether a shard has to be streamed: URLs, and commands as ``pipe:curl ...``."""
    return "://" in url or url.startswith("pipe:")


def open_shard(url: str) -> bytes | mmap.mmap:
    """The bytes of a shard: mapped into memory from the disk, or streamed into it.

    Raises:
        OSError: it cannot be read, or is empty.
    """
    if is_remote(url):
        _require_webdataset(url)
        from webdataset import gopen

        try:
            with gopen(url) as stream:
                content = stream.read()
        except Exception as error:  # of any transport
            raise OSError(f"shard {url} cannot be read: {error}") from error
        if not content:
            raise OSError(f"shard {url} cannot be read: nothing came")
        return content
    with Path(url).expanduser().open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise OSError(f"shard {url} is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_tables(urls: list[str], cache: str | Path) -> tuple[list[str], list[ShardTable]]:
    """Those shards that hold images, and their tables; what is not in the cache yet is read, and may be interrupted.

    Raises:
        ValueError: a shard is damaged, or has labels that do not fit together.
        OSError: a shard cannot be read, or the cache not written.
    """
    folder = Path(cache).expanduser() / "shards" if cache else None
    bar = tqdm(urls, desc="tables of the shards", unit="shard", dynamic_ncols=True, disable=None, leave=False)
    tables = {url: _kept_table(url, folder) for url in bar}
    found = [url for url in urls if len(tables[url].hashes)]
    if not found:
        raise FileNotFoundError(f"there are no images in {len(urls)} shards, the first is {urls[0]}")
    return found, [tables[url] for url in found]


def member_name(buffer: bytes | mmap.mmap, start: int) -> str:
    """Name of the member whose content begins there, from the header before it."""
    try:
        return tarfile.TarInfo.frombuf(buffer[start - 512 : start], "utf-8", "surrogateescape").name
    except tarfile.TarError:
        return f"the member at byte {start}"


def _kept_table(url: str, folder: Path | None) -> ShardTable:
    if folder is None:
        return _read_table(url)
    stamp: list[str | int] = [url]
    if not is_remote(url):
        local = Path(url).expanduser().resolve()
        stamp = [str(local), local.stat().st_size, local.stat().st_mtime_ns]
    path = folder / f"{hashlib.blake2b(json.dumps(stamp).encode(), digest_size=8).hexdigest()}.npz"
    try:
        with np.load(path) as kept:
            return ShardTable(kept["extents"], kept["hashes"], kept["labels"])
    except (OSError, ValueError, KeyError, EOFError):  # not there, or not whole
        table = _read_table(url)
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(draft, **table._asdict())
    os.replace(draft, path)
    return table


def _read_table(url: str) -> ShardTable:
    buffer = open_shard(url)
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(buffer) if isinstance(buffer, bytes) else buffer, mode="r:") as tar:
            for member in filter(tarfile.TarInfo.isreg, tar):
                if is_image(member.name):
                    images[_key(member.name)] = member
                elif member.name.endswith((".cls", ".json")):
                    labels[_key(member.name)] = member
    except (tarfile.TarError, ValueError) as error:  # the latter: a seek beyond the end
        raise ValueError(f"shard {url} is no complete, uncompressed tar ({error}); get it again") from error
    names = [member.name for member in images.values()]
    extents = np.array([(m.offset_data, m.size) for m in images.values()], dtype=np.int64).reshape(-1, 2)
    if len(extents) and extents.sum(1).max() > len(buffer):
        raise ValueError(f"shard {url} ends in the middle of an image; get it again")
    return ShardTable(extents, hash_names(names), _read_labels(buffer, images, labels, url))


def _key(name: str) -> str:
    """The name up to the first dot of its last part, which the files of a sample share."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _read_labels(
    buffer: bytes | mmap.mmap, images: dict[str, tarfile.TarInfo], members: dict[str, tarfile.TarInfo], url: str
) -> np.ndarray:
    """Labels of the images, int64 (N,) or (N, A); (N, 0) where no image has one."""
    parsed = {key: _parse(buffer, members[key], url) for key in images if key in members}
    rows = {key: row for key, row in parsed.items() if row is not None}
    if not rows:
        return np.zeros((len(images), 0), dtype=np.int64)
    lacking = [member.name for key, member in images.items() if key not in rows]
    if lacking:
        raise ValueError(
            f"shard {url}: {len(lacking)} of {len(images)} images have no label, the first is {lacking[0]}"
        )
    kinds = {np.shape(row) for row in rows.values()}
    if len(kinds) > 1:
        raise ValueError(f"shard {url} mixes labels of several kinds or lengths; all must be of one")
    return np.array([rows[key] for key in images], dtype=np.int64)


def _parse(buffer: bytes | mmap.mmap, member: tarfile.TarInfo, url: str) -> int | list[int] | None:
    """The label in a member: of .cls its text, of .json its entry "label", None where it has none."""
    text = buffer[member.offset_data : member.offset_data + member.size]
    try:
        value = json.loads(text)
        if member.name.endswith(".json"):
            value = value.get("label")
        whole = type(value) is int and 0 <= value < 2**31
        vector = isinstance(value, list) and value and all(item in (0, 1) for item in value)
        if value is None or whole or vector:
            return value
    except (ValueError, AttributeError, RecursionError):
        value = text[:40]
    raise ValueError(
        f"shard {url}: the label in {member.name} is {value!r}; it must be a class (a whole number from 0 on), or a "
        "list of 0 and 1"
    )


def _require_webdataset(what: str) -> None:
    try:
        import braceexpand  # noqa: F401
        import webdataset  # noqa: F401
    except ImportError:
        raise ValueError(f"{what} needs the package webdataset: pip install 'score-sde[stream]'") from None
