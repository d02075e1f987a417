"""Weights in the precision of the products: the numbers are those of autocast, whatever becomes of the weights."""

import copy
import inspect

import pytest
import torch

from models import MODELS, PRECISIONS, ScoreModel
from models.layers import ConditionEmbedding
from sde_lib import VPSDE


def awake(name):
    """(model of small networks whose silent layers speak, an input); in bfloat16."""
    torch.manual_seed(0)
    settings = {key: p.default for key, p in inspect.signature(MODELS[name]).parameters.items()}
    small = {"channels": 8, "heads": 2, "width": 8, "dropout": 0.0, "num_classes": 3}
    net = MODELS[name](**{key: value for key, value in small.items() if key in settings})
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    size = settings.get("image_size")
    shape = (2, settings["in_channels"], size, size) if size else (2, settings["dim"])
    return ScoreModel(net, VPSDE(), precision="bfloat16").eval(), torch.randn(shape)


@torch.no_grad()
def both(model, x):
    """What a frozen model gives, and what autocast makes of the same weights."""
    y = torch.tensor([0, 2])
    trainable = copy.deepcopy(model).requires_grad_(True)
    return model.requires_grad_(False).eps(x, 0.4, y), trainable.eps(x, 0.4, y)


@pytest.mark.parametrize("name", MODELS)
def test_a_frozen_network_gives_the_bits_of_autocast(name):
    model, x = awake(name)
    assert torch.equal(*both(model, x))


@pytest.mark.parametrize("name", MODELS)
def test_its_products_have_no_weights_to_convert_and_its_embedding_has_all_digits(name):
    model, x = awake(name)
    both(model, x)
    copied = model._lowered.of(model.net)
    kept = {id(p) for m in copied.modules() if isinstance(m, ConditionEmbedding) for p in m.parameters()}
    assert kept
    for module in copied.modules():
        for parameter in module.parameters(recurse=False):
            product = (
                isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
                and parameter.ndim > 1
                and id(parameter) not in kept
            )
            assert parameter.dtype == (torch.bfloat16 if product else torch.float32)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_it_follows_the_weights():
    model, x = awake("unet")
    first, _ = both(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    second, expected = both(model, x)
    assert torch.equal(second, expected)
    assert not torch.equal(first, second)
    other, _ = awake("unet")
    model.load_state_dict(other.state_dict())
    assert torch.equal(both(model, x)[0], first)
    model.net = copy.deepcopy(other.net)
    with torch.no_grad():
        model.net.head.bias.add_(1)
    assert torch.equal(*both(model, x))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_model_keeps_its_names_and_its_copies_their_own_weights(precision):
    model, x = awake("unet")
    model.precision = precision
    names = list(model.state_dict())
    before, _ = both(model, x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.net.head.bias.add_(1)
    assert list(model.state_dict()) == names == list(twin.state_dict())
    assert torch.equal(both(model, x)[0], before)
    assert not torch.equal(both(twin, x)[0], before)


def test_gradients_reach_the_input_of_a_frozen_network():
    model, x = awake("unet")
    model.requires_grad_(False)
    gradients = []
    for frozen in (model, copy.deepcopy(model).requires_grad_(True)):
        at = x.clone().requires_grad_(True)
        gradients += torch.autograd.grad(frozen.eps(at, 0.4).square().sum(), at)
    assert torch.equal(*gradients)
