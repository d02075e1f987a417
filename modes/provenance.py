"""What a result was made with: software and machine."""

import platform
from importlib import metadata

import torch


def versions(*packages: str, own: str = "") -> dict[str, str | None]:
    """Of this project, of these packages (None where one is not installed), of torch and of Python.

    Args:
        *packages: names of distributions.
        own: digest of the files of the user's own, where there are some.
    """
    return {
        **{package: _version(package) for package in ("score-sde", *packages)},
        "torch": torch.__version__,
        "python": platform.python_version(),
        **({"imports": own} if own else {}),
    }


def device_name(device: torch.device) -> str:
    """Of a GPU its model, else the kind of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from the source, without an installation
        return None
