"""--mode=doctor: silent on what is shipped, and what it says of faults mends them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from data.holdout import hash_names, held_out
from data.toy import DISTRIBUTIONS
from sde_lib import SDES

SMALL = ("--config.model.channels=8", "--config.model.channel_mult=1,1", "--config.model.precision=float32")
POINTS = ("--config.model.width=8", "--config.model.precision=float32", "--config.data.size=400")
HEALTHY = [
    *((f"--config=configs/digits.py:{name}", *SMALL) for name in SDES),
    *((f"--config=configs/toy2d.py:{name}", *POINTS) for name in DISTRIBUTIONS),
]


@pytest.fixture(autouse=True)
def _elsewhere(elsewhere):
    """Every test works in an empty folder."""


@pytest.fixture
def doctor(cli, tmp_path, bytes_of):
    """Arguments -> outcome and record; nothing but the record is written."""

    def examine(*arguments):
        folder = tmp_path / "run"
        outcome = cli("--mode=doctor", f"--workdir={folder}", *arguments)
        assert outcome.status in (0, 1), outcome
        assert outcome.err == ""
        assert list(bytes_of(folder)) == ["doctor.json"]
        assert not list((tmp_path / "cwd").iterdir())
        return outcome, json.loads((folder / "doctor.json").read_text())

    return examine


@pytest.mark.parametrize("arguments", HEALTHY, ids=lambda arguments: arguments[0].rpartition("/")[2])
def test_what_is_shipped_is_healthy(doctor, arguments):
    outcome, record = doctor(*arguments)
    assert outcome.status == 0
    assert "healthy: nothing to change" in outcome.out
    assert "!!" not in outcome.out
    assert record["healthy"]
    assert record["findings"] == []


def pasted(outcome):
    """The flags that it tells to add."""
    together = outcome.out.partition("all flags together:")[2].splitlines()
    return together[1].split() if together else re.findall(r"^ {5}(--\S+)$", outcome.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        (["sde.name=ve", "sde.sigma_max=1", "sde.sigma_min=0.9"], ["end_of_process", "start_of_process"]),
        (["sde.beta_min=0.05", "sde.beta_max=10", "likelihood.estimate=all"], ["end_of_process"]),
        (
            ["model.sigma_data=0.05", "training.warmup_steps=9999", "data.random_flip=True"],
            ["sigma_data", "warm_up", "mirroring"],
        ),
    ],
    ids=lambda words: words[-1],
)
def test_what_it_says_to_change_makes_digits_healthy(doctor, faults, found):
    arguments = ["--config=configs/digits.py", *SMALL, *(f"--config.{fault}" for fault in faults)]
    outcome, record = doctor(*arguments)
    assert [finding["check"] for finding in record["findings"]] == found
    assert outcome.status == (1 if any(finding["fault"] for finding in record["findings"]) else 0)
    again, record = doctor(*arguments, *pasted(outcome))
    assert again.status == 0
    assert record["findings"] == []


def test_pixels_on_0_to_1_in_a_file_of_levels(doctor, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 2, (400, 8, 8), dtype=np.uint8))
    arguments = ["--config=configs/digits.py", *SMALL, "--config.data.name=arrays"]
    arguments += [f"--config.data.root={tmp_path / 'images.npy'}"]
    outcome, record = doctor(*arguments)
    assert outcome.status == 1
    assert record["findings"][0]["check"] == "range"
    assert "levels 0 to 1 of 256" in outcome.out
    flags = record["findings"][0]["flags"]
    assert flags == ["--config.data.low=-1", "--config.data.high=509"]
    assert doctor(*arguments, *flags)[1]["findings"] == []


@pytest.fixture
def names(tmp_path):
    """Names of training and of held-out images, of a folder of 300 images of 16x16."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    names = [f"{k:03d}.png" for k in range(300)]
    for name in names:
        level = rng.normal(128, 35) + rng.normal(0, 35, (16, 16, 3))
        Image.fromarray(level.clip(1, 254).astype(np.uint8)).save(tmp_path / "images" / name)
    mask = held_out(hash_names(names), 0.3)
    return np.array(names)[~mask].tolist(), np.array(names)[mask].tolist()


@pytest.mark.parametrize("corrupt", ["fail", "skip"])
def test_a_folder_with_faults(doctor, names, tmp_path, corrupt):
    root, (train, heldout) = tmp_path / "images", names
    settings = {"data.root": root, "data.image_size": 16, "data.holdout": 0.3, "data.corrupt": corrupt}
    settings |= {"training.steps": 9000, "model.groups": 1}
    arguments = ["--config=configs/folder.py", *SMALL, *(f"--config.{key}={value}" for key, value in settings.items())]
    assert doctor(*arguments)[1]["findings"] == []
    (root / train[0]).write_text("no image")
    (root / heldout[0]).write_bytes((root / heldout[0]).read_bytes()[:200])
    for place, source in ((train[1], train[2]), (heldout[1], train[3])):
        (root / place).write_bytes((root / source).read_bytes())
    Image.new("RGB", (16, 16), "black").save(root / train[4])
    outcome, record = doctor(*arguments, "--config.data.image_size=32")
    assert outcome.status == 1
    unreadable = [("unreadable", corrupt == "fail")]
    assert [(finding["check"], finding["fault"]) for finding in record["findings"]] == [
        *unreadable * (corrupt == "fail"),
        ("leakage", True),
        *unreadable * (corrupt == "skip"),
        ("constant_images", False),
        ("copies", False),
        ("sizes", False),
    ]
    assert list(record["data"]["unreadable"]) == [str(root / train[0]), str(root / heldout[0])]
    assert record["data"]["equal"] == [[str(root / name) for name in train[1:3]]]
    assert record["data"]["shared"] == [[str(root / heldout[1]), str(root / train[3])]]
    assert record["data"]["of_one_value"] == [str(root / train[4])]
    told = "".join(outcome.out.split())  # without the line breaks
    assert all("".join(str(root / name).split()) in told for name in (*train[:5], *heldout[:2]))
    assert "--config.data.image_size=16" in outcome.out


def test_a_run_that_exists_is_looked_at_as_it_would_be_trained_on(cli, digits, bytes_of):
    before = bytes_of(digits)
    out = cli("--mode=doctor", f"--workdir={digits}").good()  # 4 steps see little of the data
    assert "healthy, with 1 remark\n" in out
    assert {name: content for name, content in bytes_of(digits).items() if name != "doctor.json"} == before
    fault = cli("--mode=doctor", f"--workdir={digits}", "--config.sde.beta_max=5.0").fault()
    assert "holds a run with other settings: sde.beta_max is None there and 5.0 now" in fault


def test_it_needs_data_and_reads_as_many_as_it_is_told(cli, doctor):
    outcome, record = doctor("--config=configs/digits.py", *SMALL, "--config.doctor.num_images=200")
    assert "read: 200 of 1500 training samples and 200 held-out ones" in outcome.out
    assert (record["data"]["samples"], record["data"]["read"], record["data"]["diameter_of"]) == (1500, 200, 200)
    none = ("--config=configs/default.py", "--config.data.name=none", *SMALL, "--config.training.steps=9")
    assert "has no data of its own" in cli("--mode=doctor", *none).fault()
    one = ("--config=configs/digits.py", "--config.doctor.num_images=1", *SMALL)
    assert "doctor.num_images is 1, and one sample has no spread" in cli("--mode=doctor", *one).fault()


def test_what_was_found_is_told_also_where_it_cannot_be_kept(cli, digits):
    (digits / "doctor.json" / "in the way").mkdir(parents=True)
    outcome = cli("--mode=doctor", f"--workdir={digits}")
    assert "doctor.json cannot be written" in outcome.fault()
    assert "healthy, with 1 remark\n" in outcome.out
