"""--mode=evaluate: the figures are those of the samples that --mode=sample draws, whoever computes them."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from command_line import run_cli

from data import get_dataset
from evaluation import Features, Reference, classifier, measure
from modes import evaluate as mode
from training import load_checkpoint

SMALL = [
    "--mode=evaluate",
    "--config.sampling.batch_size=4",
    "--config.evaluation.num_images=10",
    "--config.evaluation.draws=2",
    "--config.evaluation.reference_images=30",
]
OWN = "--config.evaluation.extractor=my_features:features"
CODE = """
import torch
def features(images):
    return torch.nn.functional.adaptive_avg_pool2d(images / 255, 3).flatten(1)
"""


def my_features(images):
    return torch.nn.functional.adaptive_avg_pool2d(images / 255, 3).flatten(1)


def results(folder):
    """Sampler and steps -> result, and where it lies."""
    paths = sorted((folder / "evaluation").glob("*.json"))
    found = [json.loads(path.read_text()) for path in paths]
    return {(result["sampler"], result["steps"]): (result, path) for result, path in zip(found, paths, strict=True)}


def figures(folder):
    return {key: result["metrics"] for key, (result, _) in results(folder).items()}


@pytest.fixture(autouse=True)
def _own(elsewhere, monkeypatch):
    monkeypatch.delitem(sys.modules, "my_features", raising=False)  # that of another folder
    (elsewhere / "my_features.py").write_text(CODE)


@pytest.fixture(scope="module")
def evaluated(_trained_digits, tmp_path_factory):
    """A run with two samplers evaluated in one go, and what was printed."""
    folder = shutil.copytree(_trained_digits, tmp_path_factory.mktemp("evaluated") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        (folder.parent / "my_features.py").write_text(CODE)
        out = run_cli(*SMALL, OWN, "--config.evaluation.compare=deis:2,heun:1", f"--workdir={folder}").good()
    return folder, out


def test_the_figures_are_those_of_the_samples_of_these_seeds(cli, evaluated, digits, samples_of):
    """Drawn by --mode=sample, compared with data that are fetched here, and stored as uint8 between."""
    folder, _ = evaluated
    levels = get_dataset("digits", "train").fetch(range(30)).x
    data = my_features((levels.double() * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1))
    draws = []
    for seed in (0, 1):
        shutil.rmtree(digits / "samples")
        flags = [f"--config.sampling.seed={seed}", "--config.sampling.num_images=10", "--config.sampling.steps=2"]
        cli("--mode=sample", f"--workdir={digits}", "--config.sampling.batch_size=4", *flags).good()
        images = torch.from_numpy(samples_of(digits)).expand(-1, 3, -1, -1)
        draws.append(measure(Features(my_features(images)), Reference({}, data)))
    found = figures(folder)["deis", 2]
    assert list(found) == list(draws[0]) == ["frechet_distance", "kernel_distance", "precision", "recall"]
    for name, values in found.items():
        assert values["draws"] == pytest.approx([draw[name] for draw in draws], rel=1e-6)
        assert values["mean"] == pytest.approx(np.mean(values["draws"]))
        assert values["sd"] == pytest.approx(np.std(values["draws"], ddof=1))
    assert found["frechet_distance"]["sd"] > 0


def test_a_result_can_be_cited(evaluated):
    folder, out = evaluated
    found = results(folder)
    assert set(found) == {("deis", 2), ("heun", 1)}
    result, path = found["deis", 2]
    assert path.name == "step_00000004_train_my_features-features_deis_3nfe_2x10_seed0_" + path.stem[-6:] + ".json"
    plain = {key: result[key] for key in ("extractor", "images", "draws", "seeds", "split", "nfe", "checkpoint_step")}
    assert plain == {
        "extractor": "my_features:features",
        "images": 10,
        "draws": 2,
        "seeds": [0, 1],
        "split": "train",
        "nfe": 3,
        "checkpoint_step": 4,
    }
    line = result["provenance"]
    assert f"{line}: {path}\n" in out
    for words in (
        f"extractor my_features:features (weights {result['extractor_weights']}); compared with 30 samples of digits "
        f"train, 1x8x8 (pixels {result['reference']['pixels']}); 2 draws of 10 samples as uint8, seeds 0, 1; deis, 2 "
        "steps, 3 network evaluations, denoised at the end; averaged weights of step 4 (",
        f"torch {torch.__version__}",
        "torch-fidelity 0.",
    ):
        assert words in line
    for name, values in result["metrics"].items():
        assert f"{name} by deis in 2 steps: {values['mean']:.4f} ± {values['sd']:.4f} (2 x 10 samples)\n" in out
    assert "note: 10 samples are few for 27 features: the Fréchet distance is biased upwards" in out
    assert [path.suffix for path in (folder / "evaluation").iterdir()] == [".json", ".json"]  # nothing is left


def test_one_that_fails_half_way_goes_on_to_the_same_figures(cli, evaluated, digits, monkeypatch):
    folder, _ = evaluated
    draw, drawn = mode.batches, []

    def failing(run, model):
        batch = draw(run, model)

        def recording(first, size):
            key = run.config.sampling.sampler, run.config.sampling.seed, first
            if key == ("heun", 1, 4) and key not in drawn:
                drawn.append(key)
                raise RuntimeError("the power is gone")
            drawn.append(key)
            return batch(first, size)

        return recording

    monkeypatch.setattr(mode, "batches", failing)
    arguments = [*SMALL, OWN, "--config.evaluation.compare=heun:1", f"--workdir={digits}"]
    assert "the power is gone" in cli(*arguments).fault()
    assert not list((digits / "evaluation").glob("*.json"))
    before = len(drawn)
    out = cli(*arguments).good()
    assert "samples of seed 0: 10 of 10 samples were done by an earlier run; going on from there" in out
    assert drawn[before:] == [("heun", 1, 4), ("heun", 1, 8)]
    assert figures(digits)["heun", 1] == figures(folder)["heun", 1]


def test_two_processes_have_the_figures_of_one(launcher, evaluated, digits, tmp_path, elsewhere):
    folder, _ = evaluated
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = [*SMALL, OWN, "--config.evaluation.compare=deis:2,heun:1", f"--workdir={digits}"]
    here = f"import os; os.chdir({str(elsewhere)!r})"
    pids = [launcher.start(logs[r], *arguments, before=here, RANK=str(r), WORLD_SIZE="2") for r in (1, 0)]
    assert [launcher.wait(pid) for pid in pids] == [0, 0], [log.read_text() for log in logs]
    assert logs[1].read_text() == ""
    assert figures(digits) == figures(folder)


def test_the_classifier_is_trained_once_and_its_accuracy_told(cli, digits, monkeypatch, tmp_path):
    """It is the choice for digits; with data.cache empty it lies in the run, as does the reference."""
    monkeypatch.setattr(classifier, "STEPS", 80)
    arguments = [*SMALL, "--config.data.cache=", "--config.evaluation.draws=1", f"--workdir={digits}"]
    out = cli(*arguments).good()
    ((result, _),) = results(digits).values()
    assert list(result["metrics"])[:2] == ["frechet_distance", "classifier_score"]
    assert result["metrics"]["recall"]["sd"] is None
    assert "; 1 draw of 10 samples as uint8, seed 0; " in result["provenance"]
    accuracy = float(result["provenance"].partition("accuracy ")[2].partition(" on 297 images")[0])
    assert accuracy > 0.8
    names = sorted(path.name.rpartition("_")[0] for path in (digits / "evaluation").glob("[cr]*"))
    assert names == ["classifier_digits", "reference_digits_classifier"]
    monkeypatch.setattr(classifier, "_train", None)
    monkeypatch.setattr("modes.evaluation_settings.make_reference", None)
    again = cli(*arguments).good()
    assert again.splitlines()[1:] == out.splitlines()[1:]
    assert results(digits)[result["sampler"], 1][0]["metrics"] == result["metrics"]


def test_points_are_their_own_features(cli, trained):
    cli(*SMALL, f"--workdir={trained}").good()
    ((result, _),) = results(trained).values()
    assert result["extractor"] == "identity"
    assert list(result["metrics"]) == ["frechet_distance", "kernel_distance", "precision", "recall"]
    line = result["provenance"]
    assert (
        f" train, 2 values each (values {result['reference']['pixels']}); 2 draws of 10 samples, seeds 0, 1; " in line
    )
    assert "uint8" not in line


def test_references_of_other_data_and_of_others(cli, evaluated, digits, bytes_of, elsewhere):
    base = [*SMALL, OWN, "--config.evaluation.draws=1", f"--workdir={digits}"]
    cli(*base).good()
    (reference,) = (elsewhere / "cache" / "evaluation").glob("*.npz")
    given = f"--config.evaluation.reference={reference}"
    first = figures(digits)
    cli(*base, given).good()
    assert figures(digits) == first
    before = bytes_of(digits)
    cut = elsewhere / "cut.npz"
    cut.write_bytes(reference.read_bytes()[:-100])
    rows = np.eye(3)
    np.savez(elsewhere / "moments.npz", mu=rows[0], sigma=rows)
    np.savez(elsewhere / "other.npz", x=rows)
    for flags, message in {
        ("--config.evaluation.reference_images=29", given): "images 30 there and 29 here",
        ("--config.evaluation.split=test", given): "split 'train' there and 'test' here",
        (f"--config.evaluation.reference={cut}",): "cut.npz is no whole .npz of numbers",
        (f"--config.evaluation.reference={elsewhere}/moments.npz",): "moments mu and sigma of Inception's features",
        (f"--config.evaluation.reference={elsewhere}/other.npz",): "other.npz holds x, and no features",
        ("--config.evaluation.reference=absent.npz",): "evaluation.reference is absent.npz, but there is no such file",
    }.items():
        assert message in cli(*base, *flags).fault()
    (elsewhere / "my_features.py").write_text(CODE + "\n")
    assert "is no reference for this evaluation: weights " in cli(*base, given).fault()
    assert bytes_of(digits) == before


MISTAKES = {
    "--config.evaluation.compare=deis:ten": "evaluation.compare has 'deis:ten'; give samplers, with their steps",
    "--config.evaluation.compare=deis:0": "evaluation.compare has 'deis:0'",
    "--config.evaluation.compare=deis:2,": "evaluation.compare has ''",
    "--config.evaluation.compare=deis:99999999999999999999": "with their steps (1 to 1000000)",
    "--config.evaluation.reference_images=1": "reference_images is 1, of the 1500 samples of digits train; samples are",
    "--config.data.cache=my_features.py": "cannot be written ([Errno 20] Not a directory",
    "--config.evaluation.compare=deis:2,eulr:3": "unknown sampler 'eulr'",
    "--config.evaluation.extractor=vgg": "unknown evaluation.extractor (or module:attribute) 'vgg'",
    "--config.evaluation.extractor=identity": "which is for points; one sample of 'digits' has shape (1, 8, 8)",
    "--config.evaluation.extractor=absent:f": "cannot be imported (ModuleNotFoundError: No module named 'absent')",
    "--config.evaluation.extractor=my_features:f": "(AttributeError: module 'my_features' has no attribute 'f')",
    "--config.evaluation.extractor=math:pi": "'math:pi', a float; give a function or a network",
    "--config.evaluation.split=validation": "unknown split of digits 'validation'",
    "--config.evaluation.num_images=1": "config.evaluation.num_images is 1; it must be at least 2",
    "--config.evaluation.draws=0": "config.evaluation.draws is 0; it must be at least 1",
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_mistakes(cli, digits, bytes_of, flag):
    before = bytes_of(digits)
    assert MISTAKES[flag] in cli(*SMALL, OWN, f"--workdir={digits}", flag).fault()
    assert bytes_of(digits) == before


def test_a_sampler_that_is_asked_for_twice_is_evaluated_once(cli, trained):
    out = cli(*SMALL, "--config.evaluation.compare=heun:1, heun:1", f"--workdir={trained}").good()
    assert out.count("frechet_distance by heun in 1 step: ") == 1


def test_weights_of_inception_that_are_nowhere(cli, digits, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    arguments = [*SMALL, "--config.evaluation.extractor=inception", f"--workdir={digits}"]
    fault = cli(*arguments).fault()
    name = "weights-inception-2015-12-05-6726825d.pth"
    assert f"no weights of Inception: {name} is not in {tmp_path}/hub/checkpoints, and cannot be downloaded" in fault
    assert "(--config.evaluation.weights=FILE), or choose another extractor (--config.evaluation.extractor=" in fault
    fault = cli(*arguments, "--config.evaluation.weights=here.pth").fault()
    assert f"evaluation.weights is here.pth, but there is no such file; give {name}" in fault


def test_without_torch_fidelity(cli, digits, evaluated, monkeypatch):
    def missing(module):
        raise ImportError(module)

    for room in ("evaluation.extractors", "evaluation.fidelity", "evaluation.inception"):
        monkeypatch.setattr(sys.modules[room], "optional", missing)
    out = cli(*SMALL, OWN, "--config.evaluation.compare=deis:2", f"--workdir={digits}").good()
    assert "need torch-fidelity: pip install 'score-sde[eval]'" in out
    distance = figures(evaluated[0])["deis", 2]["frechet_distance"]
    assert figures(digits)["deis", 2] == {"frechet_distance": distance}
    fault = cli(*SMALL, "--config.evaluation.extractor=inception", f"--workdir={digits}").fault()
    assert "need torch-fidelity: pip install 'score-sde[eval]'; or choose another network" in fault


# While training


TRAINING = [
    "--mode=train",
    "--config.training.evaluate_every=3",
    "--config.training.evaluate_images=20",
    "--config.training.learning_rate=0.05",
    "--config.sampling.batch_size=8",
]


def records(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line.get("evaluation/frechet_distance") for line in lines}


def test_training_keeps_the_best_checkpoint(cli, tiny, tmp_path, same_weights):
    looked, plain, resumed = (tmp_path / name for name in ("looked", "plain", "resumed"))
    out = cli(*tiny, *TRAINING, f"--workdir={looked}").good()
    found = {step: value for step, value in records(looked).items() if value is not None}
    assert list(found) == [3, 6, 9, 12]
    best = min(found, key=found.get)
    (path,) = (looked / "best").iterdir()
    assert path.name == f"step_{best:08d}"
    state = json.loads((path / "state.json").read_text())
    assert state["evaluation"]["frechet_distance"] == found[best]
    assert f"step {best}: frechet_distance {found[best]:.4f}, " in out
    assert f" --checkpoint={path}   # the best that was seen\n" in out
    # It is a checkpoint like any other, and its figure is that of its averaged weights.
    flags = ["--config.evaluation.num_images=20", "--config.evaluation.draws=1"]
    out = cli("--mode=evaluate", f"--checkpoint={path}", *flags).good()
    assert f"using the averaged weights of {path}" in out
    ((result, _),) = results(looked).values()
    assert result["metrics"]["frechet_distance"]["mean"] == pytest.approx(found[best], rel=1e-6)
    assert set(load_checkpoint(path)[0]) == {"model", "ema", "optimizer"}
    # Looking changes no bit of the training, nor does an interruption change what is found.
    cli(*tiny, *TRAINING, f"--workdir={plain}", "--config.training.evaluate_every=0").good()
    same_weights(looked, plain)
    assert not (plain / "best").exists()
    cli(*tiny, *TRAINING, f"--workdir={resumed}", "--config.training.steps=8").good()
    others = ["--config.sampling.num_images=5", "--config.sampling.trajectory=0"]  # which change nothing here
    assert "measured otherwise" not in cli(*tiny, *TRAINING, f"--workdir={resumed}", *others).good()
    same_weights(looked, resumed)
    again = {step: value for step, value in records(resumed).items() if value is not None}
    assert list(again) == [3, 6, 8, 9, 12]  # the first part looked at its last step too
    assert {step: again[step] for step in found} == found
    assert [kept.name for kept in (resumed / "best").iterdir()] == [f"step_{min(again, key=again.get):08d}"]


def test_a_metric_that_is_not_measured(cli, tiny, tmp_path):
    fault = cli(*tiny, *TRAINING, f"--workdir={tmp_path / 'run'}", "--config.evaluation.best=fid").fault()
    assert "evaluation.best is 'fid'; what is measured here is frechet_distance, kernel_distance, precision" in fault
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_file_in_the_place_of_the_best_checkpoint_is_found_before_the_first_step(cli, tiny, tmp_path):
    (tmp_path / "best").touch()
    assert "best is no folder" in cli(*tiny, *TRAINING, f"--workdir={tmp_path}").fault()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_best_checkpoint_that_is_damaged_is_no_best(cli, tiny, trained):
    """Training goes on, and what it finds takes the place of that."""
    (trained / "best" / "step_00000009").mkdir(parents=True)
    (trained / "best" / "step_00000009" / "state.json").write_text('{"evaluation": [1]}')
    out = cli(*tiny, *TRAINING, "--config.training.steps=13", f"--workdir={trained}").good()
    assert out.count("(the best so far)") == 1
    assert "best holds what was measured otherwise, or is damaged; the first evaluation takes its place" in out
    assert [path.name for path in (trained / "best").iterdir()] == ["step_00000013"]
