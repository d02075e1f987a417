"""The README keeps its word: its snippet runs and agrees with the exact answers, and what it names exists."""

import contextlib
import io
import re
from pathlib import Path

import torch

from sde_lib import VPSDE, GaussianMixture

HOME = Path(__file__).resolve().parent.parent
README = (HOME / "README.md").read_text()


def test_the_snippet_runs_and_its_samples_follow_the_mixture():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "README.md", "exec"), names)  # our own text
    data, x, log_prob = names["data"], names["x"], names["log_prob"]
    assert isinstance(data, GaussianMixture)
    assert isinstance(names["sde"], VPSDE)
    error = torch.diagonal(data.covariance).sqrt() / len(x) ** 0.5
    assert ((x.double().mean(0) - data.mean).abs() < 5 * error).all()
    # The model's density differs from that of the data by the prior's mismatch and the noise at t_min.
    assert (log_prob - data.log_prob(x)).abs().mean() < 0.05
    assert 0 < names["loss"].mean() < 1


def test_every_linked_file_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (HOME / link).exists()] == []


def test_every_recipe_that_it_names_exists():
    recipes = set(re.findall(r"configs/(\w+)\.py", README))
    assert recipes >= {"digits", "toy2d", "celeba64", "folder", "default"}
    assert {name for name in recipes if not (HOME / "configs" / f"{name}.py").is_file()} == set()
