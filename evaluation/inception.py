"""Inception's features, of which the FID is made (arXiv 1706.08500), as torch-fidelity computes them.

They are those of the network of 2015 (arXiv 1512.00567) that all published figures use, with its own way of resizing to
299x299, and the first eight digits of its file's SHA-256 are in its name. Other weights give other numbers: those are
called Fréchet distances here.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from evaluation.extractors import MISSING, Extractor, Features, optional
from evaluation.precision import whole_products

FILE = "weights-inception-2015-12-05-6726825d.pth"
STANDARD = "6726825d"
"""Beginning of the SHA-256 of the weights of which the FID is made."""
LAYERS = ["2048", "logits_unbiased"]
"""What features are, and what the Inception score is made of."""


def inception(weights: Path | str = "", device: torch.device | str = "cpu") -> Extractor:
    """The network with weights of a file; or of torch hub's folder, where they are downloaded if they are not there.

    Args:
        weights: the file; "" for torch hub's.
        device: where to compute.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: the file holds something else, or torch-fidelity is missing.
    """
    try:
        source = optional("feature_extractor_inceptionv3")
    except ImportError as error:
        raise ValueError(
            f"Inception's features need torch-fidelity: {MISSING}; or choose another network: "
            "--config.evaluation.extractor=MODULE:ATTRIBUTE, or classifier for data with labels"
        ) from error
    path = _find(weights)
    network = _build(source.FeatureExtractorInceptionV3, path).to(device)  # type: ignore[attr-defined]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[: len(STANDARD)]

    def extract(samples: Tensor) -> Features:
        if samples.shape[1] != 3:
            raise ValueError(f"Inception sees images of 1 or 3 channels; these have {samples.shape[1]}")
        with whole_products():
            return Features(*network(samples.contiguous().to(device)))

    return Extractor("inception", digest, extract, fid=digest == STANDARD, scores=True)


def _find(weights: Path | str) -> Path:
    """The file, downloaded if need be."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    path = Path(weights).expanduser() if str(weights) else kept
    if not path.is_file() and path == kept:
        url = optional("feature_extractor_inceptionv3").URL_INCEPTION_V3  # type: ignore[attr-defined]
        try:
            torch.hub.load_state_dict_from_url(url, progress=False, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"there are no weights of Inception: {FILE} is not in {kept.parent}, and cannot be downloaded from "
                f"{url} ({error}). Put the file there or name it (--config.evaluation.weights=FILE), or choose another "
                "extractor (--config.evaluation.extractor=MODULE:ATTRIBUTE, or classifier for data with labels)"
            ) from error
    if not path.is_file():
        raise FileNotFoundError(
            f"evaluation.weights is {weights}, but there is no such file; give {FILE}, or leave it empty for that in "
            f"{kept.parent}, or choose another extractor "
            "(--config.evaluation.extractor=MODULE:ATTRIBUTE, or classifier for data with labels)"
        )
    return path


def _build(network: type[torch.nn.Module], path: Path) -> torch.nn.Module:
    """The network of the file, which is no program: torch-fidelity would unpickle whatever it is given."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        return network("inception-v3-compat", LAYERS, feature_extractor_weights_path=str(path)).eval()
    except Exception as error:  # in which the unpickling of other bytes may end
        fault = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} does not hold the weights of Inception ({fault}); give {FILE}") from error
