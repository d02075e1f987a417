"""Wrappers of a score that steer where samples go, for any sampler: conditions, classifiers, linear measurements."""

from guidance.classifier import ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance
from guidance.dps import DPS
from guidance.moment_matching import MomentMatching
from guidance.operators import (
    OPERATORS,
    Colourisation,
    Deblurring,
    FunctionOperator,
    Inpainting,
    LinearOperator,
    Matrix,
    SuperResolution,
)
from guidance.posterior import Posterior
from guidance.pseudo_inverse import PseudoInverse
from guidance.replacement import Replacement

INVERSE_METHODS: dict[str, type[Posterior]] = {
    "replacement": Replacement,
    "dps": DPS,
    "pseudo_inverse": PseudoInverse,
    "moment_matching": MomentMatching,
}
"""Name -> method for linear inverse problems."""

__all__ = [
    "DPS",
    "INVERSE_METHODS",
    "OPERATORS",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Colourisation",
    "Deblurring",
    "FunctionOperator",
    "Inpainting",
    "LinearOperator",
    "Matrix",
    "MomentMatching",
    "Posterior",
    "PseudoInverse",
    "Replacement",
    "SuperResolution",
]
