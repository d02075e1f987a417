"""Generating many samples, scoring a data set, and pictures of what came out."""

from evaluation.generate import Generated, generate
from evaluation.likelihood import LikelihoodReport, evaluate_likelihood
from evaluation.pictures import density_picture, image_grid, picture, save_picture
from evaluation.trajectory import Trajectory

__all__ = [
    "Generated",
    "LikelihoodReport",
    "Trajectory",
    "density_picture",
    "evaluate_likelihood",
    "generate",
    "image_grid",
    "picture",
    "save_picture",
]
