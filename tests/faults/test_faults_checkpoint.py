"""The newest checkpoint is damaged: the one before is taken, with a message, and the end is that of a whole one."""

import shutil

import pytest
from command_line import run_cli
from injection import choices, contents, moments

pytestmark = pytest.mark.faults
FILES = ("ema.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
MODES = ("sample", "likelihood")


def truncate(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, share):
    content = bytearray(path.read_bytes())
    bit = int(share * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def remove(path, share):
    path.unlink()


def newest(run):
    return max((run / "checkpoints").glob("step_*"))


@pytest.fixture(scope="module")
def run(_trained, tmp_path_factory):
    """(folder, renew, contents after the modes from the checkpoint before, contents of a training in one go)."""
    folder = tmp_path_factory.mktemp("damaged") / "run"

    def renew():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(_trained, folder)

    renew()
    run_cli("--mode=train", f"--workdir={folder}").good()  # no step is left, but the results name their folder
    whole = contents(folder)
    renew()
    shutil.rmtree(newest(folder))
    for mode in MODES:
        run_cli(f"--mode={mode}", f"--workdir={folder}").good()
    return folder, renew, contents(folder), whole


def without_newest(found):
    return {name: content for name, content in found.items() if "step_00000012/" not in name}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_truncated_changed_or_missing(run, cli, name, record_property):
    folder, renew, of_the_one_before, whole = run
    done = []
    for share, damage in zip(moments(f"damaged {name}"), choices(name, (truncate, flip, remove)), strict=False):
        done.append(damage.__name__)
        renew()
        damage(newest(folder) / name, share)
        for mode in MODES:
            out = cli(f"--mode={mode}", f"--workdir={folder}").good()
            assert out.startswith("step_00000012 is damaged, and passed over: ")
            assert f"using the averaged weights of {folder}/checkpoints/step_00000010" in out
        assert without_newest(contents(folder)) == of_the_one_before
        renew()
        damage(newest(folder) / name, share)
        damaged = contents(newest(folder))
        out = cli("--mode=train", f"--workdir={folder}").good()
        aside = folder / "checkpoints" / "damaged_step_00000012"
        assert out.startswith("step_00000012 is damaged: ")
        assert f"It is kept as {aside}, and left aside" in out
        assert f"continuing {folder} from step 10" in out
        assert contents(aside) == damaged
        shutil.rmtree(aside)
        assert contents(folder) == whole
    record_property("damaged", ", ".join(done))
