"""What a result was made with: software and machine."""

import platform
from importlib import metadata

import torch


def versions(*packages: str) -> dict[str, str | None]:
    """Of this project, of these packages (None where one is not installed), of torch and of Python."""
    return {
        **{package: _version(package) for package in ("score-sde", *packages)},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Of a GPU its model, else the kind of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from the source, without an installation
        return None
