"""Linear measurements against their dense matrices."""

import math

import pytest
import torch

from guidance import (
    OPERATORS,
    Colourisation,
    Deblurring,
    FunctionOperator,
    Inpainting,
    Matrix,
    SuperResolution,
)
from guidance.conjugate_gradients import conjugate_gradients
from guidance.operators import CUTOFF

GENERATOR = torch.Generator().manual_seed(0)
SHAPE = (3, 6, 4)
SIZE = math.prod(SHAPE)
KERNEL = torch.rand(3, 4, generator=GENERATOR, dtype=torch.float64)
CASES = {
    "inpainting": Inpainting(torch.rand(SHAPE, generator=GENERATOR) < 0.4),
    "inpainting-shared": Inpainting(torch.rand(SHAPE[1:], generator=GENERATOR) < 0.4),
    "colourisation": Colourisation(),
    "colourisation-even": Colourisation([1 / 3] * 3),
    "super_resolution": SuperResolution(2),
    "deblurring": Deblurring(KERNEL),
    "deblurring-gaussian": Deblurring.gaussian(0.7),
    "deblurring-wider-than-the-image": Deblurring.gaussian(1.5),
    "matrix-wide": Matrix(torch.randn(5, SIZE, generator=GENERATOR), SHAPE),
    "matrix-tall": Matrix(torch.randn(SIZE + 9, SIZE, generator=GENERATOR), SHAPE),
    "function": FunctionOperator(lambda x: x[:, :, 1:] - 2 * x[:, :, :-1], SHAPE, iterations=200),
}
every_operator = pytest.mark.parametrize("operator", CASES.values(), ids=CASES.keys())


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def dense(operator):
    """Its matrix, column by column (m, d)."""
    return operator.apply(torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)).flatten(1).T


def test_every_operator_has_a_case():
    assert {type(operator) for operator in CASES.values()} == set(OPERATORS.values())


@every_operator
def test_it_is_linear_and_has_its_adjoint(operator):
    matrix = dense(operator)
    x = normal(4, *SHAPE)
    y = operator.apply(x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ matrix.T)
    v = normal(*y.shape)
    torch.testing.assert_close(operator.adjoint(v).flatten(1), v.flatten(1) @ matrix)
    assert operator.apply(x.float()).dtype == torch.float32
    assert operator.adjoint(v.float()).dtype == torch.float32


@every_operator
def test_solve_is_the_inverse_for_each_image(operator):
    matrix = dense(operator)
    y = operator.apply(normal(4, *SHAPE))
    a = torch.tensor([0.3, 1.0, 2.5, 0.7], dtype=torch.float64)
    b = torch.tensor([0.2, 0.01, 1.0, 0.5], dtype=torch.float64)
    gram = matrix @ matrix.T
    identity = torch.eye(len(gram), dtype=torch.float64)
    expected = torch.stack(
        [torch.linalg.solve(a[k] * gram + b[k] * identity, y[k].flatten()) for k in range(4)]
    ).reshape(y.shape)
    torch.testing.assert_close(operator.solve(y, a, b), expected, rtol=1e-6, atol=1e-8)
    numbers = torch.linalg.solve(0.3 * gram + 0.2 * identity, y.flatten(1).T).T.reshape(y.shape)
    torch.testing.assert_close(operator.solve(y, 0.3, 0.2), numbers, rtol=1e-6, atol=1e-8)


@every_operator
def test_the_pseudo_inverse(operator):
    matrix = dense(operator)
    y = operator.apply(normal(4, *SHAPE))
    inverse = torch.linalg.pinv(matrix, rtol=CUTOFF**0.5)  # of singular values, not their squares
    torch.testing.assert_close(operator.pinv(y).flatten(1), y.flatten(1) @ inverse.T, rtol=1e-5, atol=1e-7)
    again = operator.apply(operator.pinv(y)).flatten(1)
    torch.testing.assert_close(again, y.flatten(1) @ (matrix @ inverse).T, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_what_is_measured_is_counted(name):
    operator = CASES[name]
    y = operator.apply(normal(2, *SHAPE))
    if name.startswith("inpainting"):
        assert operator.count(y) == int((dense(operator).sum(1) > 0).sum())
    else:
        assert operator.count(y) == len(dense(operator))


def test_a_blur_keeps_the_mean_and_wraps_around():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[0, 0, 0, 0] = 1
    y = Deblurring.gaussian(1.0).apply(x)[0, 0]
    assert y.sum() == pytest.approx(1)
    torch.testing.assert_close(y, y.flip(0, 1).roll((1, 1), (0, 1)))  # symmetric about the corner
    assert y[0, 1] == pytest.approx(float(y[0, 0]) * math.exp(-0.5), rel=1e-6)
    assert y[0, 7] == pytest.approx(float(y[0, 1]))


def test_conjugate_gradients_end_in_as_many_steps_as_eigenvalues():
    vectors, _ = torch.linalg.qr(normal(20, 20))
    values = torch.tensor([1.0, 5.0, 40.0], dtype=torch.float64).repeat(7)[:20]
    matrix = vectors @ torch.diag(values) @ vectors.T
    y = normal(3, 20)
    y[1] = 0
    v = conjugate_gradients(lambda u: u @ matrix, y, iterations=3)
    torch.testing.assert_close(v, torch.linalg.solve(matrix, y.T).T, rtol=1e-8, atol=1e-10)
    rough = conjugate_gradients(lambda u: u @ matrix, y, iterations=2)
    assert not torch.allclose(rough[0], v[0], rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Inpainting(torch.zeros(4, 4, dtype=torch.bool)), "torch.bool with 0 known ones"),
        (lambda: Inpainting(torch.ones(4, 4)), "torch.float32 with 16 known ones; give a boolean tensor"),
        (lambda: SuperResolution(1), "the factor of super-resolution is 1; give a whole number from 2 on"),
        (
            lambda: SuperResolution(4).apply(torch.zeros(1, 3, 6, 8)),
            r"images of \(6, 8\) have no whole number of blocks",
        ),
        (lambda: Colourisation().apply(torch.zeros(1, 1, 6, 8)), "3 weights, but images of 1 channels"),
        (lambda: Deblurring.gaussian(0.0), "the width of the blur is 0.0 pixels; it must be above 0"),
        (lambda: Deblurring(torch.zeros(3, 3)), "give .h, w., and not all zeros"),
        (lambda: Deblurring(torch.ones(3)), r"the kernel of the blur has shape \(3,\)"),
        (lambda: Matrix(torch.ones(2, 5), (2, 3)), r"a matrix \(2, 5\) does not fit images of shape \(2, 3\)"),
    ],
)
def test_what_makes_no_sense(make, match):
    with pytest.raises(ValueError, match=match):
        make()
