"""Generating many samples, likelihood and loss of a data set, encoding and decoding, and pictures of what came out."""

from evaluation.choose import choose
from evaluation.editing import relabel, variations
from evaluation.estimators import BoundEstimator, Estimate, Estimator, ODEEstimator
from evaluation.generate import Generated, generate
from evaluation.generate_together import generate_together
from evaluation.heldout import HeldOutLoss, heldout_loss
from evaluation.interpolate import Interpolation, interpolate, slerp
from evaluation.likelihood import LikelihoodReport, evaluate_likelihood
from evaluation.parts import Parts
from evaluation.pictures import density_picture, image_grid, picture, save_picture
from evaluation.precision import computing_in
from evaluation.trajectory import Trajectory

__all__ = [
    "BoundEstimator",
    "Estimate",
    "Estimator",
    "Generated",
    "HeldOutLoss",
    "Interpolation",
    "LikelihoodReport",
    "ODEEstimator",
    "Parts",
    "Trajectory",
    "choose",
    "computing_in",
    "density_picture",
    "evaluate_likelihood",
    "generate",
    "generate_together",
    "heldout_loss",
    "image_grid",
    "interpolate",
    "picture",
    "relabel",
    "save_picture",
    "slerp",
    "variations",
]
