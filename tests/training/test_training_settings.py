"""What is refused of a configuration, and in which words."""

import copy
import math

import pytest

from configs import default
from training import settings


def plain():
    return default.get_config().to_dict()


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


DEFAULT = dict(flat(plain()))


def changed(name, value):
    config = plain()
    *path, last = name.split(".")
    node = config
    for key in path:
        node = node[key]
    node[last] = value
    return config


def refusal(name, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        settings.check(changed(name, value), plain())
    return f"{type(caught.value).__name__}: {caught.value}"


def test_the_default_passes_and_stays_as_it_is():
    config = plain()
    before = copy.deepcopy(config)
    settings.check(config, plain())
    assert config == before


def test_the_tables_name_keys_that_exist():
    assert {*settings.AT_LEAST, *settings.ABOVE_ZERO, *settings.BELOW_ONE} <= set(DEFAULT)


def test_every_number_has_a_range_but_the_seeds_and_the_ends_of_one():
    numbers = {name for name, value in DEFAULT.items() if isinstance(value, int | float) and type(value) is not bool}
    free = numbers - {*settings.AT_LEAST, *settings.ABOVE_ZERO, *settings.BELOW_ONE}
    assert free == {"seed", "sampling.seed", "likelihood.seed", "evaluation.classifier_seed", "data.low", "data.high"}


@pytest.mark.parametrize(("name", "low"), settings.AT_LEAST.items())
def test_lower_bounds(name, low):
    kind = float if DEFAULT[name] is None else type(DEFAULT[name])
    settings.check(changed(name, kind(low)), plain())
    assert refusal(name, low - 1) == f"ValueError: config.{name} is {low - 1}; it must be at least {low:g}"


@pytest.mark.parametrize("name", settings.ABOVE_ZERO)
def test_what_must_be_positive(name):
    settings.check(changed(name, 1e-12), plain())
    for value in (0.0, -1e-12):
        assert refusal(name, value) == f"ValueError: config.{name} is {value!r}; it must be above 0"


@pytest.mark.parametrize("name", settings.BELOW_ONE)
def test_shares(name):
    for value in (0.0, 0.999):
        settings.check(changed(name, value), plain())
    for value in (1.0, 7.5):
        assert refusal(name, value) == f"ValueError: config.{name} is {value!r}; it must lie in [0, 1)"
    assert f"config.{name} is -0.5; it must" in refusal(name, -0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(value):
    assert (
        refusal("training.learning_rate", value)
        == f"ValueError: config.training.learning_rate is {value!r}; it must be finite"
    )
    assert refusal("sde.sigma_max", value) == f"ValueError: config.sde.sigma_max is {value!r}; it must be finite"


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**400])
def test_whole_numbers_fit_a_machine_word(value):
    for name in ("seed", "training.steps", "sampling.seed"):
        assert refusal(name, value) == f"ValueError: config.{name} is {value}; it must fit in 64 bits"
    settings.check(changed("seed", 2**63 - 1), plain())


@pytest.mark.parametrize("name", ["training.steps", "model.name", "training.grad_clip", "model.channel_mult"])
def test_none_is_only_for_placeholders(name):
    expected = DEFAULT[name]
    assert refusal(name, None) == (
        f"TypeError: config.{name} is None; it takes a {type(expected).__name__} such as {expected!r}"
    )
    settings.check(changed("sde.beta_min", None), plain())
    settings.check(changed("sde.beta_min", 0.3), plain())


@pytest.mark.parametrize("value", [("1", 2), (0, 1), (-1,), (True, 2), [1, 2], 3, "1,2"])
@pytest.mark.parametrize(
    ("name", "kind"), [("model.channel_mult", "numbers"), ("model.attention_resolutions", "whole numbers")]
)
def test_tuples_hold_numbers(name, kind, value):
    assert refusal(name, value) == (
        f"TypeError: config.{name} is {value!r}; it takes {kind} above 0, such as {DEFAULT[name]!r}"
    )
    settings.check(changed(name, ()), plain())


def test_widths_may_be_fractions_and_resolutions_not():
    settings.check(changed("model.channel_mult", (0.5, 1)), plain())
    assert "it takes whole numbers" in refusal("model.attention_resolutions", (0.5, 1))


def test_keys_are_those_of_the_default():
    config = plain()
    config["training"]["batchsize"] = 3
    with pytest.raises(ValueError, match=r"unknown config key training\.batchsize; .* lists them all: accum"):
        settings.check(config, plain())
    config = plain()
    del config["sampling"]["snr"]
    with pytest.raises(ValueError, match=r"missing config key sampling\.snr; .*: .*batch_size, "):
        settings.check(config, plain())
    config = plain()
    config["evaluating"] = {}
    with pytest.raises(ValueError, match=r"unknown config key evaluating; .*: averaging, data, "):
        settings.check(config, plain())


def test_a_section_stays_a_section():
    assert refusal("training", 5) == (
        "TypeError: config.training is a section; set its keys one by one, as --config.training.KEY=VALUE"
    )
