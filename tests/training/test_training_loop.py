"""One step of training against closed forms: schedule, accumulation, clipping, Adam, average, and divergence."""

import itertools
import math

import pytest
import torch

from data import batch_indices
from models import EMA
from training import DivergenceError, TrainOptions, TrainState, load_checkpoint
from training.loop import learning_rate


@pytest.fixture
def scalar_run(new_run, points, new_scalar_state):
    """(loss of the model, x0 -> (B,), options) -> a run of ``Scalar`` by plain gradient descent."""

    def make(loss, name="run", **options):
        return new_run(
            name,
            dataset=points,
            loss=lambda model, x0, y, draws: loss(model, x0),
            make_state=new_scalar_state,
            options={"learning_rate": 0.5, "grad_clip": 0.0, **options},
        )

    return make


def linear(model, x0):
    """The gradient is (3, 4), of norm 5."""
    return (3 * model.w[0] + 4 * model.w[1]).expand(len(x0))


def trajectory(run, **changes):
    """The weights before the first step and after each, (steps + 1, 2)."""
    state = run.make_state()
    start = state.model.w.detach().clone()
    run.train(state=state, checkpoint_every=1, **changes)
    weights = [load_checkpoint(path)[0]["model"]["w"] for path in run.checkpoints.list()]
    return torch.stack([start, *weights])


# The learning rate


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("none", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5] + [math.cos(math.pi * step / 16) ** 2 for step in range(1, 8)]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_decays_to_zero_after_the_last_step(scalar_run, decay, expected):
    options = {"steps": 8, "warmup_steps": 2, "decay": decay, "learning_rate": 0.25}
    rates = [learning_rate(TrainOptions(batch_size=1, **options), step) for step in range(8)]
    assert rates == pytest.approx([0.25 * factor for factor in expected], rel=1e-12)
    run = scalar_run(linear, **options)
    moves = trajectory(run, log_every=1).diff(dim=0)
    expected_moves = -0.25 * torch.tensor(expected).unsqueeze(1) * torch.tensor([3.0, 4.0])
    torch.testing.assert_close(moves, expected_moves, rtol=1e-5, atol=1e-6)  # float32 weights of about 10
    assert [line["learning_rate"] for line in run.metrics] == pytest.approx(rates)


def test_warm_up_and_decay_multiply():
    options = TrainOptions(steps=10, batch_size=1, learning_rate=1.0, warmup_steps=5, decay="linear")
    assert [learning_rate(options, step) for step in range(10)] == pytest.approx(
        [0.2 * 1.0, 0.4 * 0.9, 0.6 * 0.8, 0.8 * 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": "cosin"}, "unknown decay 'cosin'; choose from 'none', 'cosine', 'linear'"),
        ({"batch_size": 6, "accumulation": 4}, "a batch of 6 cannot be cut into 4 equal parts"),
        ({"accumulation": 0}, "cannot be cut into 0 equal parts"),
    ],
)
def test_options_that_make_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**{"steps": 1, "batch_size": 1, **change})


# One update


def test_each_step_descends_the_mean_loss_of_its_batch(scalar_run):
    # the loss w0 x has the gradient mean(x), and point i is the number i
    run = scalar_run(lambda model, x0: model.w[0] * x0.squeeze(1), steps=5, batch_size=70)
    moves = trajectory(run, seed=3).diff(dim=0)
    means = [sum(batch_indices(200, 70, step, seed=3)) / 70 for step in range(5)]
    torch.testing.assert_close(moves, -0.5 * torch.tensor([[mean, 0.0] for mean in means]), rtol=1e-5, atol=1e-5)


def test_cutting_a_batch_into_parts_changes_no_update(scalar_run):
    def loss(model, x0):
        return (model.w[0] * x0.squeeze(1) / 100 - model.w[1]).square()

    whole, *cut = (
        trajectory(scalar_run(loss, f"{parts} parts", batch_size=12, learning_rate=0.1), accumulation=parts)
        for parts in (1, 2, 4, 12)
    )
    assert (whole.diff(dim=0) != 0).all()
    for other in cut:  # sums of 12 float32 numbers in another order, over 8 steps
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=0)


def test_the_loss_is_logged_as_the_mean_over_parts_and_steps(scalar_run):
    run = scalar_run(lambda model, x0: x0.squeeze(1) + 0 * model.w.sum(), batch_size=20, accumulation=4, steps=5)
    run.train(log_every=2)
    means = [sum(batch_indices(200, 20, step, seed=0)) / 20 for step in range(5)]
    assert [line["step"] for line in run.metrics] == [2, 4, 5]
    assert [line["loss"] for line in run.metrics] == pytest.approx(
        [sum(means[:2]) / 2, sum(means[2:4]) / 2, means[4]], rel=1e-6
    )


@pytest.mark.parametrize(("clip", "factor"), [(0.0, 1.0), (10.0, 1.0), (2.0, 0.4)])
def test_the_gradient_is_clipped_to_a_norm(scalar_run, clip, factor):
    run = scalar_run(linear, steps=3, grad_clip=clip)
    moves = trajectory(run, log_every=1).diff(dim=0)
    torch.testing.assert_close(moves, -0.5 * factor * torch.tensor([[3.0, 4.0]] * 3), rtol=1e-5, atol=1e-6)
    assert [line["grad_norm"] for line in run.metrics] == pytest.approx([5.0] * 3)  # of the gradient as it was


def test_the_average_follows_the_weights(scalar_run, new_scalar_state):
    run = scalar_run(linear, steps=30)
    run.make_state = lambda: new_scalar_state(decay=0.7)
    weights = trajectory(run).double()
    average = weights[0]
    for n, w in enumerate(weights[1:], start=1):
        d = min(0.7, (1 + n) / (10 + n))
        average = d * average + (1 - d) * w
        stored = load_checkpoint(run.checkpoints.folder / f"step_{n:08d}")[0]["ema"]["w"]
        torch.testing.assert_close(stored, average.float(), rtol=1e-5, atol=1e-5)


def test_a_model_sees_the_data_labels_and_a_stream_of_its_own_for_each_step(new_run, points, new_scalar_state):
    seen = []

    def loss(model, x0, y, draws):
        seen.append((x0.squeeze(1).tolist(), y.tolist(), draws.uniform("noise", (3,)).flatten().tolist()))
        return model.w.sum().expand(len(x0))

    class Labelled:
        name, shape, quantizer, num_classes = "labelled", (1,), None, 7

        def __len__(self):
            return len(points)

        def fetch(self, indices):
            return points.fetch(indices)._replace(y=torch.tensor(indices) % 7)

    new_run(dataset=Labelled(), loss=loss, make_state=new_scalar_state).train(steps=4, accumulation=2, batch_size=6)
    assert len(seen) == 8
    for step in range(4):
        indices = batch_indices(200, 6, step, seed=0)
        first, second = seen[2 * step : 2 * step + 2]
        assert first[0] + second[0] == indices
        assert first[1] + second[1] == [i % 7 for i in indices]
    noise = [value for _, _, values in seen for value in values]
    assert len(set(noise)) == len(noise)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dequantize", [False, True])
def test_a_model_sees_the_images_as_the_options_say(new_run, fresh_state, flip, dequantize):
    seen = []

    def loss(model, x0, y, draws):
        seen.append(x0)
        return sum(p.sum() for p in model.parameters()).expand(len(x0))

    run = new_run(loss=loss, options={"flip": flip, "dequantize": dequantize, "learning_rate": 0.0})
    run.train(steps=4)
    x = torch.cat(seen)
    levels = run.dataset.fetch([i for step in range(4) for i in batch_indices(13, 6, step, seed=0)]).x
    upright, mirrored = ((run.dataset.quantizer.decode(x) == v).flatten(1).all(1) for v in (levels, levels.flip(-1)))
    assert (upright ^ mirrored).all()
    assert (0 < mirrored.sum() < 24) if flip else not mirrored.any()
    on_the_grid = torch.isin(x, run.dataset.quantizer.encode(torch.arange(17)))
    assert not on_the_grid.all() if dequantize else on_the_grid.all()


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_is_adam(new_run, fresh_state, fused):
    """AdamW without weight decay is Adam: the same trajectory as torch's own on the same gradients."""

    def loss(model, x0, y, draws):
        return (model.net(x0, torch.full((len(x0),), 500.0)) - x0).square().flatten(1).mean(1)

    def make_state():
        state = fresh_state()
        state.model.net.dropout.p = 0.0
        return TrainState(
            state.model,
            torch.optim.AdamW(state.model.parameters(), betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0, fused=fused),
            state.ema,
        )

    run = new_run(loss=loss, make_state=make_state, options={"learning_rate": 0.02, "grad_clip": 0.5})
    ours = run.train()[0].model
    model = make_state().model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.8, 0.95), eps=1e-6)
    for step in range(8):
        x0 = run.dataset.quantizer.encode(run.dataset.fetch(batch_indices(13, 6, step, seed=0)).x)
        optimizer.zero_grad()
        loss(model, x0, None, None).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for a, b in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # Adam divides by small moments: rounding grows


# What happens on the way


def test_records_samples_and_checkpoints_come_when_they_are_due(scalar_run):
    run, sampled = scalar_run(linear), []
    run.train(steps=11, log_every=3, checkpoint_every=4, sample_every=5, on_sample=sampled.append)
    assert [line["step"] for line in run.metrics] == [3, 6, 9, 11]
    assert [path.name for path in run.checkpoints.list()] == ["step_00000004", "step_00000008", "step_00000011"]
    assert sampled == [5, 10]
    assert all(line["images_per_second"] > 0 for line in run.metrics)


def explode_at(step, kind):
    """A loss that is not finite, or whose gradient is not, at one step."""
    count = itertools.count(1)

    def loss(model, x0):
        value = linear(model, x0)
        if next(count) != step:
            return value
        if kind == "gradient":  # the value of sqrt(0) is finite, its slope is not
            return value + (model.w[0] - model.w[0].detach()).sqrt()
        return value * (math.nan if kind == "nan" else math.inf)

    return loss


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("every", [1, 3])
def test_divergence_names_its_step_and_nothing_is_saved_after_it(scalar_run, kind, every, clip):
    run = scalar_run(explode_at(5, kind), grad_clip=clip)
    with pytest.raises(DivergenceError, match=r"not finite at step 5\. Likely causes: .*training\.learning_rate"):
        run.train(steps=20, checkpoint_every=every, log_every=2)
    newest = {1: 4, 3: 3}[every]
    assert [path.name for path in run.checkpoints.list()][-1] == f"step_{newest:08d}"
    state = run.make_state()
    state.load(run.checkpoints.latest())
    assert state.step == newest
    assert state.model.w.isfinite().all()
    assert state.ema.model.w.isfinite().all()
    assert [line["step"] for line in run.metrics] == [2, 4]
    assert all(math.isfinite(value) for line in run.metrics for value in line.values())


def test_divergence_is_found_before_a_picture_is_drawn_and_at_the_last_step(scalar_run):
    drawn = []
    for name, kind in (("pictures", {"sample_every": 3}), ("last", {"steps": 3})):
        run = scalar_run(explode_at(3, "nan"), name)
        with pytest.raises(DivergenceError, match="at step 3"):
            run.train(**{"steps": 9, "checkpoint_every": 100, "log_every": 100, **kind}, on_sample=drawn.append)
        assert run.checkpoints.latest() is None
    assert drawn == []


def test_an_error_after_a_divergence_does_not_save_it(scalar_run):
    run = scalar_run(explode_at(3, "nan"))
    intact, calls = run.dataset.fetch, itertools.count(1)

    def fetch(indices):
        if next(calls) == 5:
            raise OSError("the disk is gone")
        return intact(indices)

    run.dataset.fetch = fetch
    with pytest.raises(OSError, match="the disk is gone"):
        run.train(checkpoint_every=100, log_every=100)
    assert run.checkpoints.latest() is None


def test_an_error_between_two_steps_loses_none(scalar_run):
    run = scalar_run(linear)

    def full(step):
        raise OSError("no space left for pictures")

    with pytest.raises(OSError, match="no space left"):
        run.train(checkpoint_every=100, sample_every=6, on_sample=full)
    assert [path.name for path in run.checkpoints.list()] == ["step_00000006"]


def test_the_average_belongs_to_the_state_and_not_to_the_weights(new_scalar_state):
    state = new_scalar_state()
    assert isinstance(state.ema, EMA)
    assert state.ema.model is not state.model
    assert not any(p.requires_grad for p in state.ema.model.parameters())
    assert not state.ema.model.training
