"""--mode=average: several averages of a run, those of other widths, the best of all, and what is done with it."""

import re
import shutil
from functools import partial

import pytest
import torch

from data import get_dataset
from evaluation import heldout_loss
from models.posthoc_ema import Profile, fit, gamma_of
from modes.average import Stored, reconstruct
from training import load_checkpoint, load_weights
from training.checkpoint import write_files

AVERAGES = [
    "--config.training.averages=0.1,power:0.1,power:0.2,power:0.14",
    "--config.training.ema_snapshot_every=3",
    "--config.training.learning_rate=0.01",
]
WIDTHS = "--config.averaging.widths=0.1,0.13,0.16"
LINE = re.compile(r"^(\S+): held-out loss (\S+) ± (\S+?)(?: \(misfit of the profile (\S+)\))?$", re.MULTILINE)
NEXT = re.compile(r"^(\S+) is the next, (\S+) ± (\S+) above it", re.MULTILINE)


@pytest.fixture(scope="module")
def _averaged(cli, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "run"
    cli("--mode=train", f"--workdir={folder}", *tiny, *AVERAGES).good()
    return folder


@pytest.fixture
def averaged(_averaged, tmp_path):
    """A finished run of 12 steps with averages, and snapshots at 3, 6, 9 and 12."""
    return shutil.copytree(_averaged, tmp_path / "averaged")


@pytest.fixture
def average(cli, averaged):
    return partial(cli, "--mode=average", f"--workdir={averaged}", WIDTHS)


def result_of(folder):
    (path,) = (folder / "averages").iterdir()
    return path, *load_checkpoint(path)


def test_a_run_holds_its_averages_and_snapshots(averaged):
    names = {path.stem for path in (averaged / "checkpoints" / "step_00000012").glob("ema*")}
    assert names == {"ema", "ema_0.1", "ema_power_0.1", "ema_power_0.2", "ema_power_0.14"}
    snapshots = sorted((averaged / "ema_snapshots").iterdir())
    assert [path.name for path in snapshots] == [f"step_{step:08d}" for step in (3, 6, 9, 12)]


def test_the_losses_are_those_of_the_averages_and_the_best_is_written(average, averaged, model_of):
    out = average().good()
    lines, ((second, gap, error),) = LINE.findall(out), NEXT.findall(out)
    tensors, _ = load_checkpoint(averaged / "checkpoints" / "step_00000012")
    path, found, values = result_of(averaged)
    assert [name for name, *_ in lines] == list(values["losses"])
    assert set(values["losses"]) == {*(n for n in tensors if n.startswith("ema")), "posthoc_0.13", "posthoc_0.16"}
    config, sde, model = model_of(averaged)
    dataset = get_dataset("toy", "test", distribution=config.data.distribution, size=100)
    options = {"num_images": 4, "weighting": config.training.weighting, "time_law": config.training.time_law}
    assert "note:" not in out
    for name, printed, spread, misfit in lines:
        if name in tensors:
            load_weights(model, tensors[name], path)
            loss = heldout_loss(sde, lambda x, t, y: model.eps(x, t), dataset, **options)
            assert values["losses"][name] == pytest.approx(loss.loss, rel=1e-6)
            assert values["errors"][name] == pytest.approx(loss.std_error, rel=1e-6)
            assert misfit == ""
        else:
            assert float(misfit) == pytest.approx(values["misfits"][name], rel=0.1)
        assert float(printed) == pytest.approx(values["losses"][name], abs=1e-6)
        assert float(spread) == pytest.approx(values["errors"][name], abs=1e-6)
    best = min(values["losses"], key=values["losses"].get)
    assert path.name == f"step_00000012_{best}"
    assert second == sorted(values["losses"], key=values["losses"].get)[1]
    assert float(gap) == pytest.approx(values["losses"][second] - values["losses"][best], rel=0.06)
    assert float(error) < values["errors"][best]
    assert set(found) == {"ema"}
    load_weights(model, found["ema"], path)
    loss = heldout_loss(sde, lambda x, t, y: model.eps(x, t), dataset, **options).loss
    assert loss == pytest.approx(values["losses"][best], rel=1e-6)


def test_another_width_is_the_sum_of_what_is_stored(averaged):
    """Made of two widths at steps 3, 6, 9 and 12, beside the same width as training kept it."""
    tracked = load_checkpoint(averaged / "checkpoints" / "step_00000012")[0]["ema_power_0.14"]
    names = ("ema_power_0.1", "ema_power_0.2")
    stored = [
        Stored(path, step, {name: Profile(step, gamma_of(float(name[10:]))) for name in names})
        for step in (3, 6, 9, 12)
        for path in [averaged / "ema_snapshots" / f"step_{step:08d}"]
    ]
    made, misfits = reconstruct(stored, {"a": 0.14, "b": 0.1}, list(tracked))
    found = fit([p for each in stored for p in each.profiles.values()], Profile(12, gamma_of(0.14)))
    assert misfits == {"a": found.misfit, "b": pytest.approx(0, abs=1e-6)}
    parts = [load_checkpoint(each.path)[0][name] for each in stored for name in names]
    for key, value in made["a"].items():
        exact = sum(c * part[key].double() for c, part in zip(found.coefficients, parts, strict=True))
        torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(made["b"][key], parts[-2][key], rtol=1e-6, atol=1e-7)
    distance = [
        sum(((one[key] - tracked[key]) ** 2).sum() for key in tracked) ** 0.5 for one in (made["a"], *parts[-2:])
    ]
    assert distance[0] < 0.05 * min(distance[1:])


def test_an_earlier_step_takes_what_there_was_until_then(average, averaged):
    out = average("--config.averaging.step=9").good()
    path, _, values = result_of(averaged)
    assert re.fullmatch(r"step_00000009_(ema_power|posthoc)_0\.\d+", path.name)
    assert values["step"] == values["ema_updates"] == 9
    basis = [Profile(step, gamma_of(std)) for step in (3, 6, 9) for std in (0.1, 0.14, 0.2)]
    assert values["misfits"]["posthoc_0.16"] == pytest.approx(fit(basis, Profile(9, gamma_of(0.16))).misfit, rel=1e-6)
    assert "ema: held-out loss" not in out


def test_the_other_modes_take_it(cli, average, averaged, samples_of):
    """The samples are those of a run whose checkpoint has these weights."""
    *commands, report = average().good().partition("next:\n")[2].splitlines()
    assert report == f"report: {averaged}/report.html"
    path, tensors, _ = result_of(averaged)
    other, part = averaged.with_name("other"), "checkpoints/step_00000012"
    shutil.copytree(averaged, other)
    everything, values = load_checkpoint(other / part)
    shutil.rmtree(other / part)
    write_files(other / part, {**everything, "ema": tensors["ema"]}, values)
    for folder in (averaged, other):
        shutil.rmtree(folder / "samples")
    assert [re.search(r"--mode=(\w+)", line)[1] for line in commands] == ["sample", "likelihood"]
    for line in commands:
        assert f"using the averaged weights of {path}\n" in cli(*line.split()[2:]).good()
    cli("--mode=sample", f"--workdir={other}").good()
    assert (samples_of(averaged) == samples_of(other)).all()
    assert any((value != everything["ema"][key]).any() for key, value in tensors["ema"].items())


def test_a_second_time_it_is_the_same_to_the_bit(average, averaged, bytes_of):
    first = average().good()
    before = bytes_of(averaged)
    assert average().good() == first
    told = ("commands.jsonl", "report.html")  # which have the date
    assert {**bytes_of(averaged), **{name: before[name] for name in told}} == before


def test_a_run_goes_on_to_the_same_snapshots_and_leaves_none_of_what_is_undone(cli, tiny, averaged, bytes_of):
    before = bytes_of(averaged)
    shutil.rmtree(averaged / "checkpoints" / "step_00000012")
    shutil.copytree(averaged / "ema_snapshots" / "step_00000012", averaged / "ema_snapshots" / "step_00000011")
    cli("--mode=train", f"--workdir={averaged}", *tiny, *AVERAGES).good()
    after = bytes_of(averaged)
    for folder in ("ema_snapshots", "checkpoints/step_00000012"):
        kept = [{name: b for name, b in found.items() if name.startswith(folder)} for found in (before, after)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--config.averaging.step=7"], "no average of step 7 is stored; set averaging.step to 3, 6, 9, 12 or another"),
        (["--config.averaging.widths=0.1;0.2"], "averaging.widths: '0.1;0.2' is no width (could not convert"),
        (["--config.averaging.widths=0.1,,0.2"], "averaging.widths: '' is no width (could not convert"),
        (["--config.averaging.widths=0.5"], "averaging.widths: '0.5' is no width (the width of an average is 0.5;"),
        (["--config.averaging.step=-1"], "config.averaging.step is -1; it must be at least 0"),
    ],
)
def test_mistakes(average, averaged, bytes_of, flags, fault):
    before = bytes_of(averaged)
    assert average(*flags).fault().startswith(fault)
    assert bytes_of(averaged) == before


def test_a_result_is_no_checkpoint_of_a_training(cli, average, averaged):
    average().good()
    path, _, _ = result_of(averaged)
    assert "is a result of this mode; give a checkpoint of the training" in average(f"--checkpoint={path}").fault()
    assert "holds averaged weights only" in cli("--mode=train", f"--checkpoint={path}").fault()


def test_a_damaged_snapshot_is_named(average, averaged):
    file = averaged / "ema_snapshots" / "step_00000006" / "ema_power_0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    fault = average().fault()
    assert fault.startswith(f"snapshot of averages {file.parent} is damaged: {file.name} has ")
    assert "Delete that folder to go on without it; averages of other widths are then made of the others" in fault
    assert not (averaged / "averages").exists()


def test_snapshots_that_are_missing_and_what_they_would_have_made_are_told(average, averaged):
    for step in (3, 6, 9):
        shutil.rmtree(averaged / "ema_snapshots" / f"step_{step:08d}")
    out = average("--config.averaging.widths=0.13,0.01").good()
    assert (
        "of the 4 snapshots up to step 12 (training.ema_snapshot_every is 3) 3 are missing, the first of step 3" in out
    )
    assert "note: posthoc_0.01 cannot be made well of what is stored (a misfit above 0.1)" in out


def test_a_damaged_result_is_made_again(cli, average, averaged):
    average().good()
    path, tensors, _ = result_of(averaged)
    (path / "state.json").unlink()
    command = ("--mode=sample", f"--workdir={averaged}", f"--checkpoint={path}")
    assert cli(*command).fault().startswith(f"average {path} is damaged: state.json is missing. Delete that folder and")
    shutil.rmtree(path)
    average().good()
    torch.testing.assert_close(result_of(averaged)[1], tensors, rtol=0, atol=0)


def test_one_average_is_no_choice(cli, trained):
    fault = cli("--mode=average", f"--workdir={trained}").fault()
    assert "holds one average, so there is nothing to choose; train with more from the start" in fault


def test_averages_begin_with_a_run(cli, tiny, trained):
    flags = ["--config.training.averages=power:0.1", "--config.training.steps=13"]
    fault = cli("--mode=train", f"--workdir={trained}", *tiny, *flags).fault()
    assert "has no average ema_power_0.1, and averages can only begin with a run" in fault


def test_the_memory_of_all_averages_is_counted(cli, tiny):
    def resident(*flags):
        out = cli("--mode=train", "--dry_run", *tiny, "--config.model.width=512", *flags).good()
        return int(re.search(r"(\d+) MiB for weights", out)[1])

    assert resident("--config.training.averages=0.1,0.2,0.3,power:0.1,power:0.2") == pytest.approx(
        2 * resident(), abs=1
    )
