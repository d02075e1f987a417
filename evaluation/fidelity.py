"""How samples compare with data, by the features of both.

| name | what it is | better |
|---|---|---|
| fid, frechet_distance | squared distance of Gaussians with the moments of the features (arXiv 1706.08500) | lower |
| kid, kernel_distance | unbiased squared MMD with the kernel (x y / D + 1)^3 (arXiv 1801.01401) | lower |
| inception_score, classifier_score | exp E KL(p(class given x), its mean over x) (arXiv 1606.03498) | higher |
| precision | share of the samples within the 3rd nearest neighbour's distance of an image (arXiv 1904.06991) | higher |
| recall | share of the images within that of a sample | higher |

The first name is for Inception's own features, the second for all others. All but ``frechet_distance`` are computed by
torch-fidelity, with its defaults, so they are those that others report.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from evaluation.extractors import MISSING, Extractor, Features, optional
from evaluation.frechet import Moments, frechet_distance, moments

NAMES = {
    True: ("fid", "inception_score", "kid"),
    False: ("frechet_distance", "classifier_score", "kernel_distance"),
}
"""Whether the features are Inception's own -> what their Fréchet distance, score and kernel distance are called."""
HIGHER_IS_BETTER = ("inception_score", "classifier_score", "precision", "recall")
"""All others are distances."""
SUBSETS, SUBSET = 100, 1000
"""Of the kernel distance: random subsets that are averaged, and the samples in each (where there are so many)."""
NEIGHBOUR = 3
SPLITS = 10
"""Parts over which the score is averaged."""


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        about: where it comes from, and of which extractor.
        features: of the data (N, D); None where their moments alone are known.
        given: these moments, where they are all that is known.
    """

    about: dict[str, Any]
    features: Tensor | None
    given: Moments | None = None

    @property
    def dims(self) -> int:
        """Number of features."""
        return len(self.moments.mean) if self.features is None else self.features.shape[1]

    @functools.cached_property
    def moments(self) -> Moments:
        """Of the features."""
        return self.given if self.features is None else moments(self.features)  # type: ignore[return-value]

    @functools.cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        """The same as torch-fidelity computes them."""
        return self.moments._asdict() if self.features is None else _statistics(self.features)


def installed() -> bool:
    """Whether torch-fidelity is."""
    try:
        optional("metric_fid")
    except ImportError:
        return False
    return True


def metrics_of(extractor: Extractor, reference: Reference) -> list[str]:
    """Names of what ``measure`` gives."""
    distance, score, kernel = NAMES[extractor.fid]
    if not installed():
        return [distance]
    neighbours = [] if reference.features is None else [kernel, "precision", "recall"]
    return [distance, *([score] if extractor.scores else []), *neighbours]


def measure(found: Features, reference: Reference, *, fid: bool = False, subsets: int = SUBSETS) -> dict[str, float]:
    """Name -> value, of those metrics that can be computed.

    Args:
        found: features of the samples.
        reference: those of the data, by the same extractor.
        fid: whether they are Inception's own.
        subsets: random ones over which the kernel distance is averaged.

    Raises:
        ValueError: the features of the samples and of the reference are not of one kind.
    """
    samples, data = found.values, reference.features
    if samples.shape[1] != reference.dims:
        raise ValueError(f"the samples have {samples.shape[1]} features, and the reference {reference.dims}")
    distance, score, kernel = NAMES[fid]
    if fid:
        values = {distance: _frechet_inception_distance(samples, reference)}
    else:
        values = {distance: frechet_distance(moments(samples), reference.moments)}
    if not installed():
        return values
    if found.logits is not None:
        values[score] = _score(found.logits)
    if data is not None:
        values[kernel] = _kernel_distance(samples, data, subsets)
        values |= _precision_recall(samples, data)
    return values


def left_out() -> str:
    """What is to be said where torch-fidelity is missing."""
    return f"note: scores, kernel distances, precision and recall need torch-fidelity: {MISSING}"


def bias_note(images: int, reference: Reference) -> str:
    """What is to be said where there are few samples for so many features; "" where there are enough."""
    fewest = min([images] if reference.features is None else [images, len(reference.features)])
    if fewest >= 10 * reference.dims:
        return ""
    return (
        f"note: {fewest} samples are few for {reference.dims} features: the Fréchet distance is biased upwards, so "
        "compare only with others of as many samples"
    )


def _statistics(features: Tensor) -> dict[str, np.ndarray]:
    made = optional("metric_fid").fid_features_to_statistics(features)  # type: ignore[attr-defined]
    return {"mean": made["mu"].astype(np.float64), "covariance": made["sigma"]}


def _frechet_inception_distance(samples: Tensor, reference: Reference) -> float:
    library: Any = optional("metric_fid")
    pair = [{"mu": s["mean"], "sigma": s["covariance"]} for s in (_statistics(samples), reference.statistics)]
    return library.fid_statistics_to_metric(*pair, verbose=False)[library.KEY_METRIC_FID]


def _score(logits: Tensor) -> float:
    library: Any = optional("metric_isc")
    return library.isc_features_to_metric(logits, splits=min(SPLITS, len(logits)))[library.KEY_METRIC_ISC_MEAN]


def _kernel_distance(samples: Tensor, data: Tensor, subsets: int) -> float:
    library: Any = optional("metric_kid")
    size = min(SUBSET, len(samples), len(data))
    found = library.kid_features_to_metric(samples, data, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    return found[library.KEY_METRIC_KID_MEAN]


def _precision_recall(samples: Tensor, data: Tensor) -> dict[str, float]:
    """Rows of distances are looked at a few at a time, since all of them would not fit in memory."""
    library: Any = optional("metric_prc")
    neighbour = min(NEIGHBOUR, len(samples) - 1, len(data) - 1)
    found = library.prc_features_to_metric(
        samples, data, prc_neighborhood=neighbour, prc_batch_size=2000, save_cpu_ram=True, verbose=False
    )
    return {name: found[name] for name in ("precision", "recall")}
