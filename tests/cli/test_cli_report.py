"""--mode=report, and what every other mode leaves in the end: a line of its command, and the page of the run."""

import json
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from PIL import Image

from configs import default
from modes import Run, conclude
from training import RunFolder


def commands(folder):
    return [json.loads(line) for line in (folder / "commands.jsonl").read_text().splitlines()]


def page(folder):
    return Page((folder / "report.html").read_text())


def test_every_mode_notes_its_command_and_makes_the_page(cli, digits):
    before = len(commands(digits))
    given = ["--mode=sample", f"--workdir={digits}", "--sampler", "heun", "--config.sampling.num_images=3"]
    out = cli(*given).good()
    assert out.splitlines()[-1] == f"report: {digits}/report.html"
    *_, line = commands(digits)
    assert len(commands(digits)) == before + 1
    assert line["mode"] == "sample"
    assert line["command"] == " ".join(["python run_lib.py", *given])
    assert line["seconds"] > 0
    assert line["machine"].startswith("cpu (")
    made = page(digits)
    assert made.tables["commands"][0][1][1:] == ["sample", f"{line['seconds']:.1f} s", line["command"]]
    settings = dict(made.tables["samples"][0])
    assert settings["sampler"] == "heun"
    assert settings["file"].startswith("samples/step_00000004_heun_")
    assert "3 samples" in made.text["memorisation"]
    cli("--mode=likelihood", f"--workdir={digits}").good()
    (path,) = (digits / "likelihood").glob("*.json")
    values = json.loads(path.read_text())["values"]
    (row,) = page(digits).tables["likelihood"][0][1:]
    assert row[1].startswith(f"{np.mean(values):.2f}"[:3])
    assert row[3] == "3"
    assert [one["mode"] for one in commands(digits)[-2:]] == ["sample", "likelihood"]


def test_the_page_can_be_made_anew_without_the_data(cli, digits):
    cli("--mode=sample", f"--workdir={digits}").good()
    expected = page(digits).text["memorisation"]
    config = json.loads((digits / "config.json").read_text())
    config["data"] |= {"name": "folder", "root": "/nowhere"}
    before = (digits / "commands.jsonl").read_bytes()
    (digits / "report.html").unlink()
    cli("--mode=report", f"--workdir={digits}").good()
    assert page(digits).text["memorisation"] == expected
    (digits / "config.json").write_text(json.dumps(config))
    assert cli("--mode=report", f"--workdir={digits}").good() == f"report: {digits}/report.html\n"
    made = page(digits)
    assert "Its files cannot be used (FileNotFoundError" in made.text["memorisation"]
    assert ["data.root", "/nowhere", '""'] in made.tables["configuration"][0]
    assert (digits / "commands.jsonl").read_bytes() == before


def test_a_report_of_points(cli, trained):
    cli("--mode=report", f"--workdir={trained}").good()
    made = page(trained)
    for name in ("memorisation", "pictures"):
        assert made.text[name].endswith("Of images only; this run is of points.")
    (film,) = (trained / "samples").glob("*_trajectory.gif")
    shown = [name for name, _ in made.elements["trajectory"] if name == "img"]
    with Image.open(film) as frames:
        assert len(shown) == frames.n_frames > 1


@pytest.mark.parametrize("name", ["report.html", "commands.jsonl", "nearest.npz"])
def test_a_report_that_cannot_be_written_fails_no_mode(cli, digits, name):
    (digits / name).unlink(missing_ok=True)
    (digits / name / "in the way").mkdir(parents=True)
    out = cli("--mode=sample", f"--workdir={digits}").good()
    assert "1 samples by deis" in out
    last = out.splitlines()[-1]
    if name == "nearest.npz":
        assert last.startswith("report: ")
        assert "nearest.npz cannot be written" in page(digits).text["memorisation"]
    else:
        assert last.startswith(f"warning: no report.html: {digits}/{name} cannot be written (")
    if name == "report.html":
        assert f"{digits}/report.html cannot be written" in cli("--mode=report", f"--workdir={digits}").fault()


def test_where_there_is_no_run(cli):
    assert "there is no run in new; train first" in cli("--mode=report", "--workdir=new").fault()
    assert not Path("new").exists()


def test_only_the_first_process_writes(tmp_path):
    config = default.get_config()
    conclude(Run(config, config, RunFolder(tmp_path / "run"), rank=1, world_size=2), "sample", ["run_lib.py"], 1.0)
    assert not (tmp_path / "run").exists()
