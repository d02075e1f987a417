"""--mode=likelihood: three estimates, what they leave behind, and what is said of wrong settings."""

import os
import shutil

import numpy as np
import pytest
import torch

from data import Draws, UniformDequantizer, get_dataset
from evaluation import BoundEstimator, ODEEstimator, evaluate_likelihood
from modes.likelihood_settings import DEQUANTIZATIONS
from sde_lib import METHODS, transport

ADAPTIVE = ["--config.likelihood.method=dopri5", "--config.likelihood.rtol=0.1", "--config.likelihood.atol=0.1"]


@pytest.fixture
def likelihood(cli):
    """(run, settings of the section ``likelihood``, other arguments) -> what comes of it."""

    def call(folder, *arguments, **settings):
        flags = [f"--config.likelihood.{key}={value}" for key, value in settings.items()]
        return cli("--mode=likelihood", f"--workdir={folder}", *arguments, *flags)

    return call


def by_hand(name, config, sde, model, dequantizer=None, repeats=1):
    """The report of an estimate of the first three test images, without the command line; labels reach the model."""
    data = get_dataset("digits", "test")
    dequantizer = dequantizer or UniformDequantizer(data.quantizer)
    if name == "ode":
        options = {"method": "euler", "steps": 3}
        estimator = ODEEstimator(sde, model, dequantizer, options=options)
    else:
        chain = 30 if name == "ddpm" else None
        estimator = BoundEstimator(sde, model.eps, data.quantizer, dequantizer, samples=2, chain=chain)
    weighted = name == "ode"
    return evaluate_likelihood(estimator, data, num_images=3, batch_size=100, repeats=repeats, weighted=weighted)[0]


def names(folder):
    return sorted(path.name for path in (folder / "likelihood").iterdir())


# The estimates


def test_all_estimates(likelihood, digits, model_of, report_of):
    out = likelihood(digits, estimate="all").good()
    assert len(names(digits)) == 3  # and nothing of the parts
    config, sde, model = model_of(digits)
    for name in ("ode", "elbo", "ddpm"):
        report, path = report_of(digits, name)
        values = by_hand(name, config, sde, lambda_model(model)).values
        assert report["values"] == values
        assert report["bits_per_dim"] == pytest.approx(np.mean(values))
        assert report["estimate"] == name
        figure = f"{report['bits_per_dim']:.4f} ± {report['std_error']:.4f}"
        assert f"{name}: {figure} bits/dim on 3 samples of the split 'test'" in out
        assert f": {path}\n" in out
    assert len({report_of(digits, name)[0]["bits_per_dim"] for name in ("ode", "elbo", "ddpm")}) == 3


def lambda_model(model):
    """A model that is not told of labels."""

    def score(x, t, y):
        return model(x, t)

    score.eps = lambda x, t, y: model.eps(x, t)
    return score


@pytest.mark.parametrize("name", ["elbo", "ddpm"])
def test_one_estimate(likelihood, digits, name, report_of):
    out = likelihood(digits, estimate=name).good()
    assert out.splitlines()[1].startswith(f"{name}: ")
    assert len(names(digits)) == len(out.splitlines()) - 2 == 1
    assert out.splitlines()[-1].startswith("report: ")
    assert report_of(digits, name)[0]["nfe"] == 3


def test_a_conditional_model_is_scored_with_its_labels(likelihood, labelled, model_of, report_of):
    likelihood(labelled, estimate="all").good()
    config, sde, model = model_of(labelled)
    for name in ("ode", "elbo", "ddpm"):
        values = report_of(labelled, name)[0]["values"]
        assert values == by_hand(name, config, sde, model).values
        assert values != by_hand(name, config, sde, lambda_model(model)).values


def test_a_process_without_a_chain(cli, tiny, monkeypatch):
    run = "--workdir=run"
    cli("--mode=train", run, *tiny, "--config.sde.name=ve").good()
    scoring = ["--mode=likelihood", run]
    out = cli(*scoring, "--config.likelihood.estimate=all").good().splitlines()
    assert [line.split(":")[0] for line in out[1:]] == ["ode", "elbo", "no DDPM bound", "report"]
    assert "a DDPM chain needs a variance-preserving process (VPSDE, CosineVPSDE); got VESDE(" in out[-2]
    assert "a DDPM chain needs a variance-pr" in cli(*scoring, "--config.likelihood.estimate=ddpm").fault()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli(*scoring, "--config.likelihood.estimate=all").good() == ""  # the first process says it


def test_a_result_says_all_that_a_citation_needs(likelihood, digits, report_of):
    likelihood(digits, estimate="all").good()
    for name in ("ode", "elbo", "ddpm"):
        report, _ = report_of(digits, name)
        assert (report["estimate"], report["settings"]["estimate"]) == (name, name)
        assert report["process"] == "VPSDE(beta_min=0.1, beta_max=20)"
        assert (report["data"]["name"], report["data"]["split"], report["data"]["shape"]) == (
            "digits",
            "test",
            [1, 8, 8],
        )
        assert report["data"]["quantizer"] == "Quantizer(levels=17, low=-1.0, high=1.0)"
        assert report["dequantization"] == "uniform"
        assert report["versions"]["torch"] == torch.__version__
        assert report["model"]["prediction"] == "edm"
        assert len(report["weights"]) == 32
        assert report.get("ddpm_steps") == (30 if name == "ddpm" else None)


@pytest.mark.parametrize(("trained_on", "kind"), [(True, "truncated_normal"), (False, "uniform")])
def test_a_dequantisation_that_does_not_fit_the_training_is_noted(likelihood, digits, trained_on, kind):
    fitting = f"--config.data.dequantize={trained_on}"
    assert "note: the model was trained on" not in likelihood(digits, fitting).good()
    assert f", for which {kind!r} is not the fitting" in likelihood(digits, fitting, dequantization=kind).good()


def test_short_chains_and_many_samples(likelihood, digits, report_of):
    likelihood(digits, "--config.training.ddpm_steps=25", estimate="ddpm", samples=1000).good()
    assert report_of(digits, "ddpm")[0]["nfe"] == 25  # each of 24 transitions once, and the reconstruction
    fault = likelihood(digits, "--config.training.ddpm_steps=2", estimate="ddpm").fault()
    assert "2 steps are too few for VPSDE(beta_min=0.1, beta_max=20)" in fault
    out = likelihood(digits, "--config.training.ddpm_steps=2", estimate="all").good()
    assert "no DDPM bound: 2 steps are too few" in out


def test_repeats_give_the_importance_weighted_bound_of_levels(likelihood, digits, trained, model_of, report_of):
    out = likelihood(digits, repeats=3).good()
    report, _ = report_of(digits)
    config, sde, model = model_of(digits)
    assert report["values"] == by_hand("ode", config, sde, lambda_model(model), repeats=3).values
    assert len(report["importance_weighted_values"]) == 3
    assert all(w < v for w, v in zip(report["importance_weighted_values"], report["values"], strict=True))
    assert report["importance_weighted"] == pytest.approx(np.mean(report["importance_weighted_values"]))
    assert f"importance-weighted over 3 draws {report['importance_weighted']:.4f} ± " in out
    likelihood(trained, repeats=2, seed=1).good()
    assert report_of(trained, "ode_seed1")[0]["importance_weighted"] is None  # points have a density


def test_a_check_is_a_scoring_at_a_tenth_of_the_tolerance(likelihood, digits, report_of):
    out = likelihood(digits, *ADAPTIVE, check=3).good()
    report, path = report_of(digits)
    check = report["check"]
    assert check["nfe"] > report["nfe"]
    path.unlink()
    likelihood(digits, *ADAPTIVE, rtol=0.01, atol=0.01).good()
    tighter = report_of(digits)[0]
    change = np.array(tighter["values"]) - report["values"]
    assert check == {
        "how": "at a tenth of the tolerance",
        "images": 3,
        "nfe": tighter["nfe"],
        "mean_change": pytest.approx(change.mean()),
        "largest_change": pytest.approx(abs(change).max()),
    }
    assert f"check: at a tenth of the tolerance ({check['nfe']} evaluations) the mean of the first 3 moves by" in out
    assert f"{check['mean_change']:+.1e} bits/dim, and none of them by more than {check['largest_change']:.1e}" in out


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind == "fixed"])
def test_a_check_of_a_method_without_tolerance(likelihood, digits, method, report_of):
    out = likelihood(digits, method=method, check=10, num_images=1).good()
    report = report_of(digits)[0]
    assert report["check"]["images"] == 1
    assert report["check"]["nfe"] > report["nfe"] >= 3
    assert report["check"]["largest_change"] > 0
    assert "check: with twice the steps (" in out


@pytest.mark.parametrize("method", ["scipy_rk45", "bosh3"])
def test_other_methods(likelihood, digits, method, report_of):
    likelihood(digits, *ADAPTIVE[1:], method=method, num_images=2).good()
    assert report_of(digits)[0]["images"] == 2


def test_codes_are_the_images_at_the_end_of_the_flow(likelihood, digits, model_of, report_of):
    likelihood(digits, estimate="all", codes=True, repeats=2).good()
    assert len(list((digits / "likelihood").glob("*.npz"))) == 1
    with np.load(report_of(digits)[1].with_suffix(".npz")) as file:
        codes = file["codes"]
    _, sde, model = model_of(digits)
    data = get_dataset("digits", "test")
    x = data.quantizer.place(data.fetch(range(3)).x, Draws(0, range(3)).uniform("dequantize", (1, 8, 8)))
    z = transport(sde, model, x, sde.t_min, sde.T, method="euler", steps=3).x
    np.testing.assert_allclose(codes, z, rtol=1e-5, atol=1e-5)


def test_precision(likelihood, digits, report_of):
    values = {}
    for precision in ("float32", "bfloat16"):
        likelihood(digits, precision=precision).good()
        report, path = report_of(digits)
        values[precision] = report["values"]
        path.unlink()
    assert values["bfloat16"] != values["float32"]
    assert values["bfloat16"] == pytest.approx(values["float32"], rel=0.05)


def test_points_or_bins(likelihood, digits, report_of):
    likelihood(digits, estimate="elbo", dequantization="truncated_normal").good()
    points, path = report_of(digits, "elbo")
    path.unlink()
    likelihood(digits, estimate="elbo").good()
    assert report_of(digits, "elbo")[0]["values"] != points["values"]


# Names


def test_results_of_the_same_settings_take_each_others_place_and_those_of_others_do_not(likelihood, digits):
    likelihood(digits).good()
    seen = {*names(digits)}
    likelihood(digits, batch_size=1, codes=True, check=1).good()  # the values are the same
    assert {name for name in names(digits) if name.endswith("json")} == seen
    for change in (
        {"seed": 1},
        {"split": "train"},
        {"steps": 4},
        {"method": "rk4"},
        {"probes": 2},
        {"repeats": 2},
        {"num_images": 2},
        {"precision": "bfloat16"},
        {"dequantization": "truncated_normal"},
        {"noise": "gaussian"},
    ):
        likelihood(digits, **change).good()
        new = {name for name in names(digits) if name.endswith("json")} - seen
        assert len(new) == 1, change
        seen |= new
    likelihood(digits, "--config.data.dequantize=False").good()
    assert len({name for name in names(digits) if name.endswith("json")} - seen) == 1
    likelihood(digits, estimate="ddpm").good()
    likelihood(digits, "--config.training.ddpm_steps=40", estimate="ddpm").good()
    assert len([name for name in names(digits) if "ddpm" in name]) == 2


def test_the_plain_name_is_that_of_the_default(likelihood, cli, tiny):
    defaults = ["num_images=0", "rtol=0.01", "atol=0.01", "divergence=hutchinson"]
    cli("--mode=train", "--workdir=run", *tiny, *(f"--config.likelihood.{d}" for d in defaults)).good()
    assert os.listdir("run/likelihood") == ["step_00000012_test_ode_seed0.json"]


def test_an_older_checkpoint_has_results_of_its_own(likelihood, trained):
    likelihood(trained, f"--checkpoint={trained}/checkpoints/step_00000010").good()
    assert [name[:13] for name in names(trained)] == ["step_00000010", "step_00000012"]


def test_a_checkpoint_of_another_run_has_results_of_its_own(likelihood, trained, tmp_path):
    """Steps have the same names in all runs."""
    other = tmp_path / "other"
    shutil.copytree(trained / "checkpoints", other)
    (before,) = names(trained)
    kept = (trained / "likelihood" / before).read_bytes()
    likelihood(trained, f"--checkpoint={other}/step_00000012").good()
    assert len(names(trained)) == 2
    assert (trained / "likelihood" / before).read_bytes() == kept


# Wrong settings

WRONG = {
    "estimate=iwae": "unknown likelihood.estimate 'iwae'; choose from 'all', 'ddpm', 'elbo', 'ode'",
    "estimate=": "unknown likelihood.estimate ''; choose from",
    "precision=fp16": "unknown likelihood.precision 'fp16'; choose from 'bfloat16', 'float32'",
    "dequantization=unifrom": "choose from 'truncated_normal', 'uniform', 'variational'; did you mean 'uniform'?",
    "dequantization=None": "unknown likelihood.dequantization 'None'; choose from",
    "dequantization=variational": "; train one first, by --mode=dequantizer on this run",
    "divergence=trace": "unknown divergence 'trace'; choose from 'exact', 'hutchinson'",
    "noise=uniform": "unknown probe noise 'uniform'; choose from 'gaussian', 'rademacher'",
    "method=rk9": "unknown ODE method 'rk9'",
    "split=valid": "unknown split of digits 'valid'; choose from 'test', 'train'",
    "split=": "unknown split of digits ''; choose from 'test', 'train'",
    "num_images=-1": "config.likelihood.num_images is -1; it must be at least 0",
    "batch_size=0": "config.likelihood.batch_size is 0; it must be at least 1",
    "repeats=0": "config.likelihood.repeats is 0; it must be at least 1",
    "repeats=99999999999999999999": "it must fit in 64 bits",
    "check=-1": "config.likelihood.check is -1; it must be at least 0",
    "check=0.5": "likelihood.check is '0.5'; it takes a whole number",
    "samples=0": "config.likelihood.samples is 0; it must be at least 1",
    "probes=0": "config.likelihood.probes is 0; it must be at least 1",
    "log_prob_care=0": "config.likelihood.log_prob_care is 0.0; it must be above 0",
    "rtol=nan": "config.likelihood.rtol is nan; it must be finite",
    "atol=0": "config.likelihood.atol is 0.0; it must be above 0",
    "codes=maybe": "likelihood.codes is 'maybe'; it takes True or False",
    "codes=True estimate=elbo": "likelihood.codes is set, but the estimate 'elbo' has no latent codes; use ode",
    "method=dopri5 max_nfe=5": "after max_nfe = 5 evaluations: raise max_nfe, or raise rtol and atol",
    "method=dopri5 rtol=1e-30 atol=1e-30": "the tolerance is below what the state's dtype resolves",
}


@pytest.mark.parametrize(("settings", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_setting(cli, digits, bytes_of, settings, message):
    before = bytes_of(digits)
    flags = [f"--config.likelihood.{setting}" for setting in settings.split(" ")]
    for mode in (["likelihood"], ["likelihood", "--dry_run"], ["train", "--config.training.steps=5"]):
        assert message in cli(f"--mode={mode[0]}", *mode[1:], f"--workdir={digits}", *flags).fault()
    assert bytes_of(digits) == before


def test_points_have_no_levels(likelihood, trained, bytes_of):
    before = bytes_of(trained)
    for name in DEQUANTIZATIONS:
        fault = likelihood(trained, dequantization=name).fault()
        assert "likelihood.dequantization is set, but 'toy/checkerboard' has no levels to dequantise" in fault
    assert bytes_of(trained) == before


def test_odd_settings_that_work(likelihood, trained, report_of):
    likelihood(trained, batch_size=1, num_images=10**9, seed=-5, method="euler", steps=1).good()
    report, _ = report_of(trained, "ode_seed-5")
    assert report["images"] == len(report["values"]) == 100
    likelihood(trained, num_images=1, divergence="exact", repeats=2, seed=2**63 - 1).good()
    report, _ = report_of(trained, f"ode_seed{2**63 - 1}")
    assert report["std_error"] is report["probe_error"] is None
    assert report["repeat_error"] == 0


def test_a_folder_that_cannot_be_written(likelihood, digits, bytes_of):
    (digits / "likelihood").write_text("mine")
    assert "likelihood" in likelihood(digits).fault()
    assert (digits / "likelihood").read_text() == "mine"
