"""Many samples and how they compare with data, likelihood and loss of a data set, codes and back, pictures."""

from evaluation.choose import choose
from evaluation.classifier import trained_classifier
from evaluation.editing import relabel, variations
from evaluation.estimators import BoundEstimator, Estimate, Estimator, ODEEstimator
from evaluation.extractors import Extractor, Features, as_seen, choose_extractor, identity, own_extractor
from evaluation.fidelity import HIGHER_IS_BETTER, Reference, bias_note, installed, left_out, measure, metrics_of
from evaluation.frechet import frechet_distance, moments
from evaluation.generate import Generated, generate
from evaluation.generate_together import generate_together
from evaluation.heldout import HeldOutLoss, heldout_loss
from evaluation.inception import inception
from evaluation.interpolate import Interpolation, interpolate, slerp
from evaluation.likelihood import LikelihoodReport, evaluate_likelihood
from evaluation.parts import Parts
from evaluation.pictures import density_picture, image_grid, picture, save_picture
from evaluation.precision import computing_in
from evaluation.reference import (
    describe_data,
    describe_reference,
    fingerprint,
    is_published,
    make_reference,
    published_reference,
    read_reference,
    reference_name,
)
from evaluation.trajectory import Trajectory

__all__ = [
    "HIGHER_IS_BETTER",
    "BoundEstimator",
    "Estimate",
    "Estimator",
    "Extractor",
    "Features",
    "Generated",
    "HeldOutLoss",
    "Interpolation",
    "LikelihoodReport",
    "ODEEstimator",
    "Parts",
    "Reference",
    "Trajectory",
    "as_seen",
    "bias_note",
    "choose",
    "choose_extractor",
    "computing_in",
    "density_picture",
    "describe_data",
    "describe_reference",
    "evaluate_likelihood",
    "fingerprint",
    "frechet_distance",
    "generate",
    "generate_together",
    "heldout_loss",
    "identity",
    "image_grid",
    "inception",
    "installed",
    "interpolate",
    "is_published",
    "left_out",
    "make_reference",
    "measure",
    "metrics_of",
    "moments",
    "own_extractor",
    "picture",
    "published_reference",
    "read_reference",
    "reference_name",
    "relabel",
    "save_picture",
    "slerp",
    "trained_classifier",
    "variations",
]
