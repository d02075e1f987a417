"""Levels and ranges: exact inverses, the uniform law of dequantisation, masses of levels, and float32 at the edges."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from data.quantizer import Quantizer
from data.randomness import make_generator

QUANTIZERS = [
    Quantizer(levels, low, high)
    for levels in (2, 3, 17, 100, 255, 256, 5000)
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (-0.3, 0.7), (3.0, 10.1))
]


@pytest.fixture(params=QUANTIZERS, ids=str)
def quantizer(request):
    return request.param


def every_level(quantizer, repeats=1):
    return torch.arange(quantizer.levels, dtype=quantizer.dtype).repeat(repeats, 1)


def test_bin_width_of_the_usual_images():
    assert Quantizer().bin_width == 2 / 256
    assert Quantizer(17, 0.0, 1.0).bin_width == 1 / 17


def test_encode_is_the_rounded_formula(quantizer):
    v = every_level(quantizer)
    exact = quantizer.low + (quantizer.high - quantizer.low) * v.double() / (quantizer.levels - 1)
    x = quantizer.encode(v)
    assert x.dtype == torch.float32
    assert torch.all((x.double() - exact).abs() <= 2**-24 * exact.abs() + 1e-15)
    assert x[0, 0] == np.float32(quantizer.low)
    assert x[0, -1] == np.float32(quantizer.high)


def test_decode_undoes_encode(quantizer):
    v = every_level(quantizer)
    assert torch.equal(quantizer.decode(quantizer.encode(v)), v)


def test_decode_undoes_dequantize_and_stays_below_high(quantizer):
    v = every_level(quantizer, repeats=4000)
    x = quantizer.dequantize(v, make_generator("quantizer"))
    assert x.dtype == torch.float32
    assert torch.equal(quantizer.decode(x), v)
    assert float(x.min()) >= np.float32(quantizer.low)
    assert float(x.max()) < np.float32(quantizer.high)


def test_float32_rounding_never_reaches_the_next_level():
    """The plain formula does: on these very draws it rounds up to the upper edge now and then."""
    quantizer = Quantizer()
    v = torch.full((2**23,), 255, dtype=torch.uint8)
    u = torch.rand(v.shape, generator=make_generator("edge"))
    plain = quantizer.low + (quantizer.high - quantizer.low) * (v.float() + u) / quantizer.levels
    assert float(plain.max()) >= quantizer.high
    x = quantizer.dequantize(v, make_generator("edge"))
    assert float(x.max()) < quantizer.high
    assert torch.all(quantizer.decode(x) == 255)
    assert torch.allclose(x, plain, rtol=0, atol=2e-7)


@pytest.mark.parametrize("quantizer", [Quantizer(), Quantizer(17, 0.0, 1.0)], ids=str)
def test_dequantized_values_are_uniform_in_their_bin(quantizer):
    v = torch.randint(quantizer.levels, (50_000,), generator=make_generator("levels"))
    x = quantizer.dequantize(v, make_generator("law")).double()
    u = (x - quantizer.low) / quantizer.bin_width - v
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u[1:].numpy(), u[:-1].numpy())[0, 1]) < 5 / np.sqrt(len(u))


def test_noise_comes_from_the_generator_only():
    v = every_level(Quantizer())
    first = Quantizer().dequantize(v, make_generator(1))
    torch.rand(7)
    assert torch.equal(first, Quantizer().dequantize(v, make_generator(1)))
    assert not torch.equal(first, Quantizer().dequantize(v, make_generator(2)))


def test_decode_is_the_clamped_floor(quantizer):
    spread = quantizer.high - quantizer.low
    x = quantizer.low + spread * (2 * torch.rand(20_000, generator=make_generator("floor")) - 0.5)
    position = (x.double() - quantizer.low) / spread * quantizer.levels
    clear_of_edges = (position - position.round()).abs() > 1e-3
    expected = position.floor().clamp(0, quantizer.levels - 1).to(quantizer.dtype)
    v = quantizer.decode(x)
    assert v.dtype == (torch.uint8 if quantizer.levels <= 256 else torch.int32)
    assert torch.equal(v[clear_of_edges], expected[clear_of_edges])


def test_bin_edges_belong_to_the_upper_bin():
    edges = torch.arange(-128, 129) / 128  # exact in float32
    assert torch.equal(Quantizer().decode(edges), torch.arange(257).clamp(max=255).to(torch.uint8))
    below = torch.nextafter(edges, torch.tensor(-2.0))
    assert torch.equal(Quantizer().decode(below), (torch.arange(257) - 1).clamp(min=0).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_decode_reads_other_precisions(dtype):
    x = torch.tensor([[-3.0, -1.0, 0.0], [0.5, 0.9921875, 7.0]], dtype=dtype).T  # not contiguous
    assert Quantizer().decode(x).tolist() == [[0, 192], [0, 255], [128, 255]]


def test_pictures_spread_the_levels_evenly(quantizer):
    v = every_level(quantizer)
    picture = quantizer.to_uint8(quantizer.encode(v))
    expected = np.round(255 * v.numpy().astype(np.float64) / (quantizer.levels - 1))
    assert picture.dtype == torch.uint8
    assert picture[0, 0] == 0
    assert picture[0, -1] == 255
    np.testing.assert_array_equal(picture.numpy(), expected)


def test_empty_tensors_pass():
    empty = torch.empty(0, 3, dtype=torch.uint8)
    for x in (Quantizer().encode(empty), Quantizer().dequantize(empty)):
        assert x.shape == (0, 3)
        assert Quantizer().decode(x).shape == (0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_have_no_level(bad):
    with pytest.raises(ValueError, match="1 of 3 are not finite"):
        Quantizer().decode(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize("levels", [0, 1, -5, 2.0, "256", None])
def test_levels_are_validated(levels):
    with pytest.raises(ValueError, match="levels must be an integer, 2 or more, got"):
        Quantizer(levels)


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_range_is_validated(low, high):
    with pytest.raises(ValueError, match="finite low < high"):
        Quantizer(256, low, high)


def test_range_too_narrow_for_float32_is_refused():
    with pytest.raises(ValueError, match="float32 cannot tell 256 levels apart"):
        Quantizer(256, 1000.0, 1001.0)
    with pytest.raises(ValueError, match="float32 cannot tell 1000000 levels apart"):
        Quantizer(1_000_000)


def test_sixteen_bits_survive_every_map():
    """The point of level v lies 1 / (L - 1) of a bin from its edge at the ends, far below what float32 resolves."""
    law = Quantizer(65536)
    v = torch.arange(65536, dtype=torch.int32)
    assert torch.equal(law.decode(law.encode(v)), v)
    for share in (0.0, 0.5, 1 - 2**-24):
        assert torch.equal(law.decode(law.place(v, torch.full(v.shape, share))), v)
    assert law.to_uint8(law.encode(v)).unique().tolist() == list(range(256))


@pytest.mark.parametrize("operation", ["encode", "dequantize"])
def test_levels_of_a_tensor_are_validated(operation):
    run = getattr(Quantizer(17), operation)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16, got values from 0 to 17"):
        run(torch.tensor([0, 17]))
    with pytest.raises(ValueError, match="got values from -1 to 3"):
        run(torch.tensor([-1, 3]))
    with pytest.raises(TypeError, match=r"levels are integers \(torch.uint8\), got a tensor of torch.float32"):
        run(torch.tensor([0.5]))


# Places inside a bin, and the mass of a level

SHARES = torch.tensor([0.0, 2**-24, 0.25, 0.5, 0.875, 1 - 2**-24])


def test_place_is_the_share_of_the_bin_and_decodes_to_the_level(quantizer):
    v = every_level(quantizer, repeats=len(SHARES))
    x = quantizer.place(v, SHARES[:, None].expand(v.shape))
    spread = quantizer.high - quantizer.low
    exact = quantizer.low + spread * (v.double() + SHARES.double()[:, None]) / quantizer.levels
    assert x.dtype == torch.float32
    assert torch.all((x.double() - exact).abs() <= 2**-22 * max(abs(quantizer.low), abs(quantizer.high)))
    assert torch.equal(quantizer.decode(x), v)
    assert torch.equal(quantizer.decode(torch.nextafter(x[:1], torch.tensor(-99.0)))[:, 1:], v[:1, :-1])  # at u = 0


def log_masses(quantizer, mean, std, points):
    """Log of the mass of N(mean, std^2) in each cell, by quadrature in the log domain: no difference is taken."""
    spaced = np.linspace(quantizer.low, quantizer.high, quantizer.levels + (not points)).astype(np.float32)
    edges = (spaced[1:].astype(np.float64) + spaced[:-1]) / 2 if points else spaced[1:-1].astype(np.float64)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    half = np.diff(edges) / 2
    z = ((edges[1:] + edges[:-1]) / 2 + nodes[:, None] * half - mean) / std
    inner = logsumexp(stats.norm.logpdf(z), b=weights[:, None] * half / std, axis=0)
    first, last = stats.norm.logcdf((edges[0] - mean) / std), stats.norm.logsf((edges[-1] - mean) / std)
    return np.concatenate([[first], inner, [last]])


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("std", [0.01, 0.1, 3.0])  # cells of 6 deviations down to one 50th
@pytest.mark.parametrize("law", [Quantizer(17, -0.3, 0.7), Quantizer(256), Quantizer(3, 3.0, 10.1)], ids=str)
def test_log_mass_is_that_of_the_cell_even_30_deviations_away(law, std, points):
    if law.levels == 3:
        std = 20 * std
    means = np.array([law.low - 30 * std, law.low, (law.low + law.high) / 2, law.high - std / 3, law.high + 30 * std])
    v = every_level(law, repeats=len(means))
    found = law.log_mass(v, torch.from_numpy(means)[:, None].expand(v.shape), std, points=points)
    expected = np.stack([log_masses(law, mean, std, points) for mean in means])
    assert found.dtype == torch.float64
    assert expected.min() < -400  # far out, where a difference of probabilities would be 0 or of no digits
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=2e-10)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("std", [1e-3, 0.05, 1.0, 50.0])
def test_the_masses_of_all_levels_are_one(quantizer, std, points):
    means = torch.linspace(quantizer.low - 40 * std, quantizer.high + 40 * std, 41, dtype=torch.float64)
    v = every_level(quantizer, repeats=len(means))
    found = quantizer.log_mass(v, means[:, None].expand(v.shape), std, points=points)
    assert found.isfinite().all()
    assert found.logsumexp(1).abs().max() < 1e-12


def test_a_sharp_law_gives_its_level_everything():
    law = Quantizer(17)
    v = every_level(law)
    assert torch.all(law.log_mass(v, law.encode(v), 1e-9, points=True) == 0)
    assert torch.all(law.log_mass(v, law.place(v, torch.full(v.shape, 0.5)), 1e-9) == 0)
    other = law.log_mass(v.flip(1), law.encode(v), 1e-4, points=True)[0]
    assert other.isfinite().all()
    assert other[0] == pytest.approx(-0.5 * (2 - 0.0625) ** 2 / 1e-8, rel=1e-6)  # 19375 deviations away


def test_log_mass_takes_a_deviation_for_each_sample():
    law, v = Quantizer(17), every_level(Quantizer(17), repeats=2)
    mean = torch.linspace(-1, 1, 17).expand(2, 17)
    both = law.log_mass(v, mean, torch.tensor([[0.1], [0.7]]))
    torch.testing.assert_close(both[1:], law.log_mass(v[1:], mean[1:], 0.7), rtol=1e-6, atol=0)
    torch.testing.assert_close(both[:1], law.log_mass(v[:1], mean[:1], 0.1), rtol=1e-6, atol=0)


def test_the_levels_of_a_mass_are_validated():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16, got values from 0 to 17"):
        Quantizer(17).log_mass(torch.tensor([0, 17]), torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.16, got values from 0 to 17"):
        Quantizer(17).place(torch.tensor([0, 17]), torch.zeros(2))
