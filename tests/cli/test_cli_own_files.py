"""Files of the user's own: what they register is known to every mode, remembered by the run, and what it says it is."""

import json

import pytest

from modes import sample
from samplers import SAMPLERS
from sde_lib import SDES

TWINS = """
from samplers import SAMPLERS
from samplers.heun import Heun
from sde_lib import SDES, VPSDE

SDES["twin"] = VPSDE
SAMPLERS["twin"] = Heun
"""


@pytest.fixture
def twins(elsewhere):
    """A file that gives the VP process and Heun's method a second name, forgotten after the test."""
    tables = {id(table): (table, dict(table)) for table in (SDES, SAMPLERS)}
    (elsewhere / "twins.py").write_text(TWINS)
    yield "twins.py"
    for table, before in tables.values():
        table.clear()
        table.update(before)


def test_a_run_with_them_is_the_run_of_what_they_stand_for(cli, tiny, twins, same_weights, tmp_path, monkeypatch):
    own = [f"--config.imports={twins}", "--config.sde.name=twin", "--sampler=twin"]
    cli("--mode=train", f"--workdir={tmp_path / 'own'}", *tiny, *own).good()
    cli("--mode=train", f"--workdir={tmp_path / 'ours'}", *tiny, "--sampler=heun").good()
    same_weights(tmp_path / "own", tmp_path / "ours")
    stored = json.loads((tmp_path / "own" / "config.json").read_text())
    assert stored["imports"] == str((tmp_path / "cwd" / "twins.py").resolve())
    del SDES["twin"], SAMPLERS["twin"]
    monkeypatch.chdir(tmp_path)  # the run knows where they are
    assert "by twin, 7 network" in cli("--mode=sample", f"--workdir={tmp_path / 'own'}").good()
    assert SDES["twin"] is SDES["vp"]
    (tmp_path / "cwd" / "twins.py").write_text(TWINS + "# another\n")
    out = cli("--mode=train", f"--workdir={tmp_path / 'own'}", "--config.training.steps=13").good()
    assert "changed since this run began: what the files of imports hold: " in out


def test_samples_of_a_file_that_was_edited_are_not_mixed_with_those_before(
    cli, trained, twins, elsewhere, monkeypatch, samples_of
):
    """The second of two batches fails; with the file as it was one goes on, and with another one begins anew."""
    own = ["--mode=sample", f"--workdir={trained}", f"--config.imports={twins}", "--sampler=twin"]
    generate = sample.generate

    def failing(*arguments, first, **options):
        if first:
            raise RuntimeError("the power is gone")
        return generate(*arguments, first=first, **options)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate", failing)
        assert "the power is gone" in cli(*own).fault()
    (elsewhere / twins).write_text(TWINS.replace("samplers.heun import Heun", "samplers.ddim import DDIM as Heun"))
    out = cli(*own).good()
    assert "done by an earlier run" not in out
    cli("--mode=sample", f"--workdir={trained}", "--sampler=ddim").good()
    assert (samples_of(trained, "*_twin_*") == samples_of(trained, "*_ddim_*")).all()
    (elsewhere / twins).write_text(TWINS)
    assert "sampling: 4 of 6 samples were done by an earlier run" in cli(*own).good()
    assert len(list((trained / "samples").glob("*_twin_*.npz"))) == 2  # neither took the other's place
    told = [json.loads(path.read_text())["imports"] for path in (trained / "samples").glob("*_twin_*.json")]
    assert len(set(told)) == 2


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("absent.py", None, "config.imports names absent.py, but there is no such file"),
        ("broken.py", "1 / 0", "broken.py: ZeroDivisionError: division by zero"),
        ("leaves.py", "raise SystemExit", "leaves.py: SystemExit: "),
        ("words.txt", "words", "words.txt, which is no Python file"),
        ("run/code.py", "raise KeyError('ran')", "which is in the run folder; code there is not run: move it"),
    ],
)
def test_a_file_that_cannot_be_used(cli, tiny, elsewhere, name, content, fault):
    if content is not None:
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text(content)
    outcome = cli("--mode=train", f"--workdir={elsewhere / 'run'}", *tiny, f"--config.imports={name}")
    assert fault in outcome.fault()
    assert not (elsewhere / "run" / "config.json").exists()


def test_a_run_folder_from_somebody_else_brings_no_code(cli, tiny, elsewhere):
    (elsewhere / "theirs.py").write_text("raise KeyError('ran')")
    folder = elsewhere / "run"
    cli("--mode=train", f"--workdir={folder}", *tiny).good()
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"imports": "theirs.py"}))
    assert "imports theirs.py, which no run stores like that" in cli("--mode=sample", f"--workdir={folder}").fault()
    typed = cli("--mode=sample", f"--workdir={folder}", "--config.imports=theirs.py")
    assert "theirs.py: KeyError: 'ran'" in typed.fault()
