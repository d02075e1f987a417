"""The Gaussian-mixture baseline of the digits' bits/dim: what a classical density model makes of the same images.

    python benchmarks/digits_likelihood.py

Mixtures of scikit-learn, fitted to the 1,500 training images, each dequantised uniformly several times; kind, size and
regularisation are chosen on 300 of them that are held back, then the choice is fitted to all 1,500 and scored on the
297 held-out images, whose dequantisation is that of ``--mode=likelihood`` with the same seed. Minutes on one core.
"""

import math
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import UniformDequantizer, get_dataset
from evaluation import Draws

COPIES = 8
"""Dequantised copies of each training image."""


def main():
    train, test = get_dataset("digits", "train"), get_dataset("digits", "test")
    order = np.random.default_rng(0).permutation(len(train))
    fit_on, choose_on = order[300:].tolist(), order[:300].tolist()
    settings = product(("full", "diag", "tied"), (3, 5, 8, 10, 20, 40, 80, 160), (1e-4, 3e-4, 1e-3))
    found = []
    for kind, components, regularisation in settings:
        model = fitted(flat(train, fit_on, COPIES), kind, components, regularisation)
        bits = score(model, train, choose_on)
        found.append((bits.mean(), kind, components, regularisation))
        print(f"{kind:5s} {components:3d} components, {regularisation:g} + diagonal: {bits.mean():.4f}", flush=True)
    _, *best = min(found)
    bits = score(fitted(flat(train, range(len(train)), COPIES), *best), test, range(len(test)))
    error = bits.std(ddof=1) / math.sqrt(len(bits))
    print(f"chosen: {best}; held out: {bits.mean():.4f} ± {error:.4f} bits/dim on {len(bits)} images")


def flat(dataset, indices, copies):
    """Dequantised images as rows, float64, ``copies`` of each."""
    indices = list(indices)
    v, dequantize = dataset.fetch(indices).x, UniformDequantizer(dataset.quantizer)
    rows = [dequantize(v, Draws(0, indices, k).uniform("dequantize", v.shape[1:])).x.flatten(1) for k in range(copies)]
    return torch.cat(rows).double().numpy()


def fitted(rows, kind, components, regularisation):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(components, covariance_type=kind, reg_covar=regularisation, random_state=0).fit(rows)


def score(model, dataset, indices):
    """Bits/dim of each image, one draw of dequantisation."""
    log_prob = model.score_samples(flat(dataset, indices, 1))
    dims = math.prod(dataset.shape)
    return -(log_prob / dims + math.log(dataset.quantizer.bin_width)) / math.log(2)


if __name__ == "__main__":
    main()
