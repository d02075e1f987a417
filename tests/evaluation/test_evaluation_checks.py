"""Checks before training: closed forms of what they measure, planted faults, and silence on healthy data."""

import inspect
import math

import oracles
import pytest
import torch

from data import Quantizer, TensorDataset, survey
from data.toy import DISTRIBUTIONS, Toy
from evaluation.checks import CHECKS, Finding, Plan, Row, Subject, examine
from evaluation.checks.remedy import round_up, sufficient
from evaluation.diameter import BLOCK, diameter
from evaluation.prior_gap import GaussianFit, fit_gaussian, kl_from_prior
from sde_lib import EDMSDE, SDES, VESDE, VPSDE, CosineVPSDE, ddpm_schedule

PLAN = Plan(steps=1000, batch_size=32, warmup_steps=10, prediction="edm", sigma_data=0.5)


def faces(n=300, side=8, seed=0, channels=1):
    """Images of all levels, whose pixels hang together: a mean of its own for each image, and noise."""
    g = torch.Generator().manual_seed(seed)
    x = 0.25 * torch.randn(n, channels, 1, 1, generator=g) + 0.3 * torch.randn(n, channels, side, side, generator=g)
    return Quantizer().decode(x.clamp(-1, 1))


def subject(raw=None, heldout=None, sde=None, plan=PLAN, y=None, num_classes=0, **quantizer):
    def looked(x, y=None):
        return survey(
            TensorDataset(
                "given", x, y, quantizer=Quantizer(**quantizer), num_classes=num_classes if y is not None else 0
            )
        )

    raw = faces() if raw is None else raw
    return Subject(looked(raw, y), None if heldout is None else looked(heldout), sde or VPSDE(), plan)


def changed(**changes):
    return Plan(**{**vars(PLAN), **changes})


def findings(of):
    return dict(examine(of).findings)


# What is measured


@pytest.mark.parametrize("n", [1, 2, 7, BLOCK + 3])
def test_the_diameter_is_the_largest_of_all_distances(n):
    x = 100 + torch.randn(n, 2, 3, generator=oracles.generator())
    pairs = (x[:, None] - x[None]).double().square().sum((2, 3)).sqrt()
    assert diameter(x) == pytest.approx(float(pairs.max()), rel=1e-6)


def test_the_diameter_of_known_points():
    x = torch.zeros(BLOCK + 50, 4)
    x[:, 0] = torch.linspace(-1, 1, len(x))
    x[3], x[-2] = torch.tensor([0, 3.0, 0, 0]), torch.tensor([0, 0, 4.0, 0])
    assert diameter(x) == 5.0


@pytest.mark.parametrize("n", [5, 40])
def test_the_gaussian_has_the_moments_of_the_samples(n):
    x = torch.randn(n, 3, 4, generator=oracles.generator(), dtype=torch.float64) + 1
    fit = fit_gaussian(x)
    exact = torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0)).sort(descending=True).values
    found = fit.variances.sort(descending=True).values
    torch.testing.assert_close(found, exact[: len(found)], rtol=1e-10, atol=1e-12)
    assert exact[len(found) :].abs().sum() < 1e-12  # the rest are 0
    assert fit.mean_square == pytest.approx(float(x.mean(0).square().sum()))
    assert fit.dims == 12


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("law", [oracles.mixture_2d(), oracles.mixture((1, 3, 3))], ids=["plane", "image"])
def test_the_distance_from_the_prior_is_that_of_gaussians(name, law):
    sde = SDES[name]()
    mean, cov = law.mean.flatten(), law.covariance
    fit = GaussianFit(float(mean.square().sum()), torch.linalg.eigvalsh(cov), len(mean))
    eye = torch.eye(len(mean), dtype=torch.float64)
    for t in (1.0, 0.7, 0.3):
        alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        normal = torch.distributions.MultivariateNormal
        ours = normal(alpha * mean, alpha**2 * cov + sigma**2 * eye)
        prior = normal(0 * mean, sde.prior_std**2 * eye)
        exact = float(torch.distributions.kl_divergence(ours, prior))
        assert kl_from_prior(fit, alpha, sigma, sde.prior_std) == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_dimensions_without_variance_count_too():
    flat = GaussianFit(2.0, torch.tensor([3.0], dtype=torch.float64), 4)
    whole = GaussianFit(2.0, torch.tensor([3.0, 0, 0, 0], dtype=torch.float64), 4)
    assert kl_from_prior(flat, 0.5, 0.7, 1.0) == pytest.approx(kl_from_prior(whole, 0.5, 0.7, 1.0), rel=1e-14)


def test_the_distance_of_the_fit_is_a_lower_bound_and_close():
    law, sde = oracles.mixture_2d(), VPSDE(0.05, 5.0)
    x = law.marginal(sde, 1.0).sample(200_000, generator=oracles.generator(), dtype=torch.float64)
    true = law.log_prob(x, sde, 1.0) - sde.prior_log_prob(x)
    fit = GaussianFit(float(law.mean.square().sum()), torch.linalg.eigvalsh(law.covariance), 2)
    alpha, sigma = (float(v) for v in sde.marginal(torch.tensor(1.0, dtype=torch.float64)))
    kl, error = float(true.mean()), float(true.std()) / math.sqrt(len(x))
    assert kl_from_prior(fit, alpha, sigma, 1.0) == pytest.approx(kl, abs=4 * error)


def test_what_ddpms_betas_leave_at_the_end_of_500_steps():
    """Its 1e-4 .. 0.02 are made for 1000; the process makes them 2e-4 .. 0.04."""
    wrong, right = ddpm_schedule(VPSDE(0.05, 10.0), 500), ddpm_schedule(VPSDE(), 500)
    for schedule, first, last, left in ((wrong, 1e-4, 0.02, 6.3529e-3), (right, 2e-4, 0.04, 3.7661e-5)):
        assert [float(schedule.betas[0]), float(schedule.betas[-1])] == pytest.approx([first, last], rel=1e-12)
        product = math.prod(1 - (first + (last - first) * i / 499) for i in range(500))
        assert float(schedule.alphas_cumprod[-1]) == pytest.approx(product, rel=1e-12)
        assert product == pytest.approx(left, rel=1e-4)


def test_a_setting_is_found_that_suffices():
    assert [round_up(value) for value in (60.2, 61, 0.0312, 9.99, 100)] == [61, 61, 0.032, 10, 100]
    assert sufficient(VESDE(), "sigma_max", lambda sde: sde.sigma_max >= 60.2) == 61
    assert sufficient(VESDE(), "sigma_max", lambda sde: sde.sigma_max >= 3) == 50  # already good
    assert sufficient(EDMSDE(rho=5.0), "sigma_max", lambda sde: sde.rho == 5.0 and sde.sigma_max > 100) is not None
    assert sufficient(VESDE(), "sigma_max", lambda sde: False) is None
    assert sufficient(VESDE(), "beta_max", lambda sde: True) is None


# Faults that are planted, and their remedies


def remedied(finding, sde):
    """The process with the flags of a finding."""
    values = dict(flag.removeprefix("--config.sde.").split("=") for flag in finding.flags)
    settings = {name: getattr(sde, name) for name in inspect.signature(type(sde)).parameters}
    return type(sde)(**settings | {key: float(value) for key, value in values.items()})


@pytest.mark.parametrize(
    ("sde", "check", "knob"),
    [
        (VESDE(sigma_max=1.0), "end_of_process", "sigma_max"),
        (EDMSDE(sigma_max=3.0), "end_of_process", "sigma_max"),
        (VPSDE(0.05, 10.0), "end_of_process", "beta_max"),
        (SDES["subvp"](0.1, 8.0), "end_of_process", "beta_max"),
        (CosineVPSDE(beta_max=5.0), "end_of_process", "beta_max"),
        (VESDE(sigma_min=0.1), "start_of_process", "sigma_min"),
    ],
    ids=repr,
)
def test_a_process_that_does_not_fit_is_found_and_the_flag_mends_it(sde, check, knob):
    found = findings(subject(sde=sde))
    assert list(found) == [check]
    assert found[check].fault
    assert [flag.partition("=")[0] for flag in found[check].flags] == [f"--config.sde.{knob}"]
    assert findings(subject(sde=remedied(found[check], sde))) == {}


def test_too_small_a_sigma_max_is_told_the_largest_distance():
    s = subject(sde=VESDE(sigma_max=1.0))
    (flag,) = findings(s)["end_of_process"].flags
    value = float(flag.partition("=")[2])
    assert s.diameter <= value <= 1.1 * s.diameter


def test_the_chain_that_is_trained_on_is_looked_at():
    plan = changed(chain=500, on_chain=True)
    found = findings(subject(sde=VPSDE(0.05, 10.0), plan=plan))["end_of_process"]
    assert found.fault
    assert "step 500 of the chain SNR 0.0064" in found.found
    assert findings(subject(plan=plan)) == {}
    coarse = findings(subject(plan=changed(chain=30, on_chain=True)))["start_of_process"]  # beta_0 is 0.1 / 30
    steps = int(coarse.flags[0].removeprefix("--config.training.ddpm_steps="))
    assert findings(subject(plan=changed(chain=steps, on_chain=True))) == {}


def test_large_images_of_one_brightness_need_more_noise_than_their_snr_tells():
    """KL sees what the SNR of a pixel does not: |m|^2 grows with the number of pixels."""
    raw = (faces(40, side=64, channels=3).int() // 4 + 191).to(torch.uint8)
    found = findings(subject(raw, sde=VESDE(sigma_min=0.01, sigma_max=50.0), plan=changed(sigma_data=0.8)))
    assert found["end_of_process"].fault
    assert "nats from the prior" in found["end_of_process"].found


@pytest.mark.parametrize(("levels", "spans"), [((0, 1), "0.39 %"), ((128, 255), "50 %"), ((127, 129), "0.78 %")])
def test_a_range_that_the_values_do_not_fill_is_found_and_the_flags_mend_it(levels, spans):
    low, high = levels
    raw = torch.randint(low, high + 1, (300, 1, 8, 8), generator=oracles.generator(), dtype=torch.uint8)
    found = findings(subject(raw))
    assert next(iter(found)) == "range"
    assert found["range"].fault
    assert f"span {spans} of the declared range" in found["range"].found
    values = [float(flag.partition("=")[2]) for flag in found["range"].flags]
    again = subject(raw, low=values[0], high=values[1])
    assert float(again.train.least.min()) == pytest.approx(-1, abs=1e-3)
    assert float(again.train.most.max()) == pytest.approx(1, abs=1e-3)
    assert "range" not in findings(again)


def test_vectors_of_another_scale_are_found():
    x = 0.01 * torch.randn(200, 3, generator=oracles.generator())
    found = findings(Subject(survey(TensorDataset("points", x)), None, VPSDE(), PLAN))
    assert found["range"].fault
    assert "divide them by 0.01" in found["range"].remedy.replace("0.00997", "0.01").replace("0.00999", "0.01")


def test_levels_that_never_occur_are_found():
    raw = faces(500) // 2 * 2
    found = findings(subject(raw))
    assert list(found) == ["levels"]
    assert not found["levels"].fault
    assert "128 levels occur of the 255 from 0 to 254: one in 2" in found["levels"].found
    few = torch.tensor([0, 3, 40, 41, 255], dtype=torch.uint8)[torch.randint(5, (500, 1, 8, 8))]
    assert "levels" in findings(subject(few))
    assert "levels" not in findings(subject(faces(3) // 2 * 2))  # too few values to tell


@pytest.mark.parametrize(("count", "fault"), [(1, False), (20, True)])
def test_copies_constant_images_and_leaks_are_found(count, fault):
    raw, heldout = faces(), faces(1000, seed=1)
    copied, black, leaked = raw.clone(), raw.clone(), heldout.clone()
    copied[:count], black[:count], leaked[:count] = raw[-1], 0, raw[:count]
    assert findings(subject(raw, heldout)) == {}
    planted = {
        "copies": (subject(copied, heldout), f"{count} of 300"),
        "constant_images": (subject(black, heldout), f"{count} of 300"),
        "leakage": (subject(raw, leaked), f"{count} of 1000"),
    }
    for check, (s, told) in planted.items():
        found = findings(s)
        assert list(found) == [check]
        assert found[check].fault == fault
        assert told in found[check].found
        more = count > 1
        assert ("sample 2 of given" in found[check].found) == more  # a few are named
        assert ("more" in found[check].found) == more


def test_channels_without_a_spread_and_equal_ones_are_found():
    raw = faces(channels=3)
    raw[:, 2] = 7
    found = findings(subject(raw))
    assert list(found) == ["channels"]
    assert found["channels"].fault
    grey = faces().repeat(1, 3, 1, 1)
    found = findings(subject(grey, plan=changed(crop="center")))
    assert list(found) == ["channels"]
    assert found["channels"].flags == ("--config.data.channels=1",)


def test_labels_matter_where_the_network_is_told_them():
    y = torch.arange(300) % 4
    assert findings(subject(y=y, num_classes=4, plan=changed(conditional=True))) == {}
    assert findings(subject(y=y, num_classes=6)) == {}
    found = findings(subject(y=y, num_classes=6, plan=changed(conditional=True)))
    assert found["labels"].fault
    assert found["labels"].found == "2 of 6 classes have no samples: 4, 5"
    rare = (torch.arange(300) < 280).long()
    found = findings(subject(y=rare, num_classes=2, plan=changed(conditional=True)))["labels"]
    assert not found.fault
    assert "280 samples, the rarest 20" in found.found


def test_mirroring_of_what_is_not_symmetric_is_found():
    assert "mirroring" not in findings(subject(plan=changed(flip=True)))
    raw = faces()
    raw[:, :, :, :2] = 250
    assert findings(subject(raw, plan=changed(flip=True)))["mirroring"].flags == ("--config.data.random_flip=False",)
    turned = raw.clone()
    turned[::2] = turned[::2].flip(-1)  # as a whole the data are symmetric, but each class is not
    assert "mirroring" not in findings(subject(turned, plan=changed(flip=True)))
    y = torch.arange(300) % 2
    assert "mirroring" in findings(subject(turned, plan=changed(flip=True), y=y, num_classes=2))


@pytest.mark.parametrize("wrong", [0.05, 10.0])
def test_a_wrong_sigma_data_is_found_and_the_measured_one_told(wrong):
    s = subject(plan=changed(sigma_data=wrong))
    found = findings(s)
    assert list(found) == ["sigma_data"]
    assert float(found["sigma_data"].flags[0].partition("=")[2]) == pytest.approx(s.train.whole_std, rel=0.05)
    assert findings(subject(plan=changed(sigma_data=wrong, prediction="eps"))) == {}


def test_a_plan_that_ends_too_early_or_goes_on_too_long_is_found():
    assert findings(subject(plan=changed(warmup_steps=1000)))["warm_up"].fault
    assert findings(subject(plan=changed(warmup_steps=999))) == {}
    short = findings(subject(plan=changed(steps=9, warmup_steps=0)))["passes"]
    assert not short.fault
    assert short.flags == ("--config.training.steps=10",)
    assert "seen 10,667 times" in findings(subject(plan=changed(steps=100_000)))["passes"].found
    assert findings(subject(plan=changed(steps=None, batch_size=None))) == {}


def test_a_law_of_times_that_misses_the_data_is_found():
    sde = SDES["subvp"]()
    found = findings(subject(sde=sde, plan=changed(time_law="log_snr")))
    assert list(found) == ["draws_of_time"]
    assert not found["draws_of_time"].fault
    law = found["draws_of_time"].flags[0].removeprefix("--config.training.time_law=")
    assert findings(subject(sde=sde, plan=changed(time_law=law))) == {}


# Silence


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_points_in_the_plane_are_healthy(distribution):
    train, heldout = (survey(Toy(split, distribution=distribution, size=500)) for split in ("train", "test"))
    plan = changed(sigma_data=1.0, time_law="logistic")
    for process in SDES.values():
        assert examine(Subject(train, heldout, process(), plan)).findings == ()


def test_every_check_shows_what_it_measured_and_faults_come_first():
    plan = changed(sigma_data=9.0, flip=True, conditional=True, crop="center", steps=9, warmup_steps=0)
    s = subject(faces(), faces(20, seed=1), plan=plan, y=torch.arange(300) % 3, num_classes=3)
    silent = {name for name, check in CHECKS.items() if not any(isinstance(item, Row) for item in check(s))}
    assert silent == {"sizes", "warm_up"}  # no files, and no warm-up
    found = examine(s)
    assert [(name, finding.fault) for name, finding in found.findings] == [("sigma_data", True), ("passes", False)]
    assert found.faults == 1
    record = found.to_dict()
    assert record["healthy"] is False
    assert [finding["check"] for finding in record["findings"]] == ["sigma_data", "passes"]
    assert all(isinstance(finding, Finding) for _, finding in found.findings)
    assert [row["what"] for row in record["measured"] if not row["ok"]] == ["model.sigma_data", "passes over the data"]
