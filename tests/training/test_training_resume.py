"""A run that stops and goes on gives the bits of one that does not."""

import signal

import pytest
import torch

from data import batch_indices

SETTINGS = {
    "plain": {},
    "all kinds of noise": {"dequantize": True, "flip": True, "accumulation": 3, "grad_clip": 0.1},
    "schedule": {"warmup_steps": 5, "decay": "cosine", "learning_rate": 1e-2},
    "threads": {"workers": 2, "dequantize": True},
}


@pytest.fixture(scope="module")
def whole(make_run, tmp_path_factory):
    """Eight steps without a stop, and the checkpoint of every one."""
    run = make_run(tmp_path_factory.mktemp("whole"), options={"dequantize": True})
    run.train(checkpoint_every=1)
    return run


@pytest.fixture
def new_part(new_run):
    """A run of the same settings, which will be stopped."""
    return lambda: new_run("part", options={"dequantize": True, "checkpoint_every": 100})


def check_resuming(whole, part, stops, same_bits, make_state):
    """From several steps on, each in a state that began with other weights."""
    for stop in stops:
        state, reason = part.train(whole.checkpoints.folder / f"step_{stop:08d}", state=make_state(init=1))
        assert (state.step, reason) == (8, "finished")
        same_bits(part.tensors(), whole.tensors())


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_resuming_is_exact(new_run, fresh_state, same_bits, options):
    # 13 images in batches of 6: every stop is inside an epoch, and steps 3, 5 and 7 straddle two
    whole, part = new_run("whole", options=options), new_run("part", options=options)
    whole.train(checkpoint_every=1)
    check_resuming(whole, part, (1, 2, 3, 4, 7), same_bits, fresh_state)


def test_resuming_a_unet_is_exact(new_run, fresh_unet_state, same_bits):
    options = SETTINGS["all kinds of noise"]
    whole, part = (new_run(name, options=options, make_state=fresh_unet_state) for name in ("whole", "part"))
    whole.train(checkpoint_every=3)
    check_resuming(whole, part, (3,), same_bits, fresh_unet_state)


def test_what_is_logged_saved_and_sampled_on_the_way_changes_nothing(whole, new_part, same_bits):
    def use_randomness(step):
        torch.manual_seed(step)
        torch.rand(step)

    other = new_part()
    other.train(log_every=2, checkpoint_every=3, sample_every=1, on_sample=use_randomness)
    same_bits(other.tensors(), whole.tensors())


def test_every_step_moves_every_tensor(whole):
    # else the comparisons above would compare constants
    (before, _), (after, _) = whole.tensors(7), whole.tensors(8)
    for name, group in after.items():
        for key, value in group.items():
            assert not torch.equal(value, before[name][key]), (name, key)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(new_run, same_bits):
    runs = {name: new_run(name, options={"steps": 3}) for name in ("one", "two", "other")}
    runs["one"].train()
    torch.rand(3)
    runs["two"].train()
    runs["other"].train(seed=1)
    same_bits(runs["one"].tensors(), runs["two"].tensors())
    model, other = (runs[name].tensors()[0]["model"] for name in ("one", "other"))
    assert not any(torch.equal(model[key], other[key]) for key in model if model[key].numel() > 8)


def test_the_time_limit_stops_saves_and_goes_on_to_the_same_bits(whole, new_part, same_bits):
    part, reasons, steps = new_part(), [], []
    while not steps or steps[-1] < 8:
        state, reason = part.train(part.checkpoints.latest(), time_limit=1e-9)  # used up by a single step
        reasons.append(reason)
        steps.append(state.step)
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert reasons == ["time limit"] * 7 + ["finished"]
    same_bits(part.tensors(), whole.tensors())


def test_a_run_that_is_done_is_left_alone(new_run, bytes_of):
    run = new_run()
    run.train(steps=2)
    before = bytes_of(run.checkpoints.folder)
    for steps in (2, 1):
        state, reason = run.train(run.checkpoints.latest(), steps=steps)
        assert (state.step, reason) == (2, "finished")
    assert bytes_of(run.checkpoints.folder) == before
    assert [line["step"] for line in run.metrics] == [2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_it_falls_into(whole, new_part, same_bits, number):
    part = new_part()
    original, calls = part.loss, []

    def loss(*arguments):
        calls.append(number)
        if len(calls) == 4:
            signal.raise_signal(number)
        return original(*arguments)

    part.loss = loss
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    state, reason = part.train()
    assert (state.step, reason) == (4, number.name)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in part.checkpoints.list()] == ["step_00000004"]
    same_bits(part.tensors(), whole.tensors(4))
    state, reason = part.train(part.checkpoints.latest())
    assert (state.step, reason) == (8, "finished")
    same_bits(part.tensors(), whole.tensors())


def test_a_second_signal_ends_the_run_at_once_and_saves_no_half_step(whole, new_part, same_bits):
    part, handler = new_part(), signal.getsignal(signal.SIGINT)
    state = part.make_state()
    finish = state.optimizer.step

    def interrupted():
        finish()
        if state.step == 3:  # the weights are those of step 4 now, the average is that of step 3
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    state.optimizer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        part.train(state=state, checkpoint_every=2)
    assert [path.name for path in part.checkpoints.list()] == ["step_00000002"]
    assert signal.getsignal(signal.SIGINT) is handler
    part.train(part.checkpoints.latest())
    same_bits(part.tensors(), whole.tensors())


class Broken:
    """A data set whose image ``index`` cannot be read."""

    def __init__(self, dataset, index):
        self.inner, self.index = dataset, index
        self.name, self.shape, self.quantizer, self.num_classes = "broken", dataset.shape, dataset.quantizer, 0

    def __len__(self):
        return len(self.inner)

    def fetch(self, indices):
        if self.index in indices:
            raise ValueError(f"cannot use image {self.index}")
        return self.inner.fetch(indices)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_end_the_run_and_the_steps_before_are_saved(whole, new_part, same_bits, workers):
    part = new_part()
    intact, third = part.dataset, batch_indices(13, 6, 2, seed=0)[0]  # the image that the first two steps leave over
    part.dataset = Broken(intact, third)
    with pytest.raises(ValueError, match=f"cannot use image {third}"):
        part.train(workers=workers)
    assert [path.name for path in part.checkpoints.list()] == ["step_00000002"]
    same_bits(part.tensors(), whole.tensors(2))
    part.dataset = intact
    part.train(part.checkpoints.latest())
    same_bits(part.tensors(), whole.tensors())


def test_memory_that_runs_out_in_a_step_leaves_the_steps_before(whole, new_part, same_bits):
    part = new_part()
    original, calls = part.loss, []

    def loss(*arguments):
        calls.append(0)
        if len(calls) == 4:
            torch.empty(2**50)
        return original(*arguments)

    part.loss = loss
    with pytest.raises(RuntimeError, match=r"not enough memory|can't allocate memory"):
        part.train()
    assert [path.name for path in part.checkpoints.list()] == ["step_00000003"]
    same_bits(part.tensors(), whole.tensors(3))
    part.loss = original
    part.train(part.checkpoints.latest())
    same_bits(part.tensors(), whole.tensors())


def test_bad_data_at_the_first_step_leave_no_checkpoint(new_run):
    run = new_run(options={"batch_size": 13})
    run.dataset = Broken(run.dataset, 4)
    with pytest.raises(ValueError, match="cannot use image 4"):
        run.train()
    assert run.checkpoints.latest() is None
