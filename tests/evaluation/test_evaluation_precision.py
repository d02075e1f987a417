"""The precision of a likelihood, and that everything is as before afterwards."""

import pytest
import torch
from torch import nn

from evaluation import computing_in
from models import ScoreModel
from sde_lib import VPSDE

BACKENDS = (torch.backends.cudnn, torch.backends.cuda.matmul)


class Spy(nn.Module):
    """A network that notes the precision of its product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2) / 3)
        self.seen = []

    def forward(self, x, c_noise, y=None):
        out = x @ self.weight
        self.seen.append(out.dtype)
        return out


def flags():
    return [backend.allow_tf32 for backend in BACKENDS]


@pytest.fixture(params=[(True, True), (True, False), (False, True), (False, False)], ids=str)
def before(request):
    kept = flags()
    for backend, allowed in zip(BACKENDS, request.param, strict=True):
        backend.allow_tf32 = allowed
    yield list(request.param)
    for backend, allowed in zip(BACKENDS, kept, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture(params=["float32", "bfloat16"])
def model(request):
    return ScoreModel(Spy(), VPSDE(), precision=request.param)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fails", [False, True])
def test_precision_holds_inside_and_all_is_as_before_outside(model, before, precision, fails):
    own, x, t = model.precision, torch.randn(3, 2), torch.full((3,), 0.5)
    model(x, t)

    def work():
        with computing_in(model, precision):
            assert flags() == ([False, False] if precision == "float32" else before)
            model(x, t)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            work()
    else:
        work()
    assert flags() == before
    model(x, t)
    assert model.net.seen == [getattr(torch, name) for name in (own, precision, own)]


def test_precisions_nest(model, before):
    own = model.precision
    with computing_in(model, "float32"):
        with computing_in(model, "bfloat16"):
            assert model.precision == "bfloat16"
            assert flags() == [False, False]  # what the outer one asks of others
        assert model.precision == "float32"
        assert flags() == [False, False]
    assert model.precision == own
    assert flags() == before


def test_an_unknown_precision_changes_nothing(model, before):
    own = model.precision
    with pytest.raises(ValueError, match="precision"), computing_in(model, "float16"):
        pass
    assert (model.precision, flags()) == (own, before)
