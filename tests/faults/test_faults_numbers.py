"""NaN in data, in loss, in gradients: the error names the step, all that is saved is finite, and it can go on."""

import re

import numpy as np
import pytest
from injection import STEPS, moments, newest_step
from safetensors.torch import load_file

pytestmark = pytest.mark.faults
SPOIL = """
import itertools, torch
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
steps, now = itertools.count(1), [0]

def forward(module, inputs, output):
    if type(module).__name__ == "MLP" and module.training and type(output) is torch.Tensor and not output.is_meta:
        now[0] = next(steps)
        return output * float("nan") if {what!r} == "loss" and now[0] == {step} else output

def backward(module, to_inputs, from_outputs):
    if type(module).__name__ == "Linear" and now[0] == {step}:
        return tuple(None if gradient is None else gradient * float("nan") for gradient in to_inputs)

register_module_forward_hook(forward)
if {what!r} == "gradient": register_module_full_backward_hook(backward)
"""
DISK = """if event == "os.mkdir" and ".writing_step_{step:08d}" in path:
            import numpy
            numpy.load({file!r}, mmap_mode="r+")[:] = numpy.nan"""


def check(run, status, steps_of):
    """What it says, and what it leaves, after NaN in the step that is returned."""
    found = re.match(r"error: the loss or its gradient is not finite at step (\d+)\. Likely causes", run.fault(status))
    step = int(found[1])
    assert steps_of(run.folder) == list(range(1, step))
    assert newest_step(run.folder) == (step - 1) // 5 * 5
    for path in run.folder.glob("checkpoints/step_*/*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())
    run.check_no_part_is_taken_for_the_whole()
    return step


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_in_a_step(subject, steps_of, what):
    run = subject("train")
    for share in moments(f"NaN in {what}"):
        run.renew()
        step = 1 + int(share * STEPS)
        assert check(run, run.wait(run.start(before=SPOIL.format(what=what, step=step))), steps_of) == step
        run.check_it_goes_on()


def test_in_data_that_change_on_the_disk(subject, steps_of):
    run = subject("train")
    file = run.folder.with_name("points.npy")
    mended = file.read_bytes()
    for share in moments("NaN in data"):
        run.renew()
        step = 5 * (1 + int(share * (STEPS // 5 - 1)))  # at whose checkpoint it happens
        status = run.wait(run.start(at_operation=0, fault=DISK.format(file=str(file), step=step)))
        assert check(run, status, steps_of) > step
        assert np.isnan(np.load(file)).all()
        status = run.wait(run.start())
        assert f"{file} holds values that are not finite" in run.fault(status)  # now it is seen at once
        file.write_bytes(mended)
        run.check_it_goes_on()
