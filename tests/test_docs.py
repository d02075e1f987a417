"""docs/ keep their word: their snippets run, their links lead somewhere, and their tables name what there is."""

import contextlib
import io
import re
from pathlib import Path

import oracles
import pytest
import torch

from configs import default
from models import MODELS, pretrained
from models.pretrained.published import PUBLISHED
from samplers import GRIDS, SAMPLERS, THRESHOLDS, get_sampler, sampler_options
from sde_lib import VPSDE

HOME = Path(__file__).resolve().parent.parent
SAMPLERS_PAGE = (HOME / "docs" / "samplers.md").read_text()


@pytest.mark.parametrize("page", sorted(path.name for path in (HOME / "docs").glob("*.md")))
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\(([^)#]+)\)", (HOME / "docs" / page).read_text())
    assert [link for link in links if "://" not in link and not (HOME / "docs" / link).exists()] == []


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (HOME / "docs").glob("*.md"))])
def test_every_setting_that_a_page_names_exists(page):
    config = default.get_config()
    text = (HOME / page).read_text()
    flags = re.findall(r"--config\.(\w+)\.(\w+)", text)
    words = [pair for pair in re.findall(r"`(\w+)\.(\w+)(?: ?=[^`]*)?`", text) if pair[0] in config]
    assert [pair for pair in flags + words if pair[0] not in config or pair[1] not in config[pair[0]]] == []


def rows():
    """Name -> the other cells of the table of samplers."""
    found = {}
    for line in SAMPLERS_PAGE.partition("## What there is")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith("`"):
            found |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1:])
    return found


def test_the_table_lists_every_sampler_with_its_options():
    table, shared = rows(), set(sampler_options("heun"))
    assert set(table) == set(SAMPLERS)
    for name, (_, _, _, options, natural) in table.items():
        own = set(sampler_options(name)) - shared
        assert own == set(re.findall(r"`(\w+)`", options)), name
        sampler = get_sampler(name)
        if natural != "its own" and name != "ode":
            assert natural == f"{sampler.steps}, {sampler.grid}"
    assert all(f"`{option}`" in SAMPLERS_PAGE for option in shared)
    assert all(f"`{grid}`" in SAMPLERS_PAGE for grid in GRIDS)
    assert set(THRESHOLDS) == {"none", "clip", "dynamic"}


def test_the_table_states_the_orders():
    for name, (_, order, *_) in rows().items():
        if order == "-" or name == "ode":
            continue
        stated = [int(n) for n in re.findall(r"\d+", order)]
        if len(stated) == 1:
            assert get_sampler(name).order == stated[0]
        else:
            assert [get_sampler(name, order=k + 1).order for k in range(len(stated))] == stated


def test_the_first_snippet_runs():
    code = re.findall(r"```python\n(.*?)```", SAMPLERS_PAGE, re.DOTALL)[0]
    names = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "docs/samplers.md", "exec"), names)  # our own text
    assert names["result"].x.shape == (64, 2)
    assert names["result"].nfe == 21


def test_the_sampler_that_is_added_as_an_example_is_ddim():
    code = re.findall(r"```python\n(.*?)```", SAMPLERS_PAGE, re.DOTALL)[1]
    names = {}
    exec(compile(code, "docs/samplers.md", "exec"), names)
    sde, law = VPSDE(), oracles.mixture_2d()
    x = torch.randn(5, 2, generator=oracles.generator(), dtype=torch.float64)
    example, ddim = (
        sampler.sample(sde, law.score_fn(sde), x.shape, x_init=x)
        for sampler in (names["ExponentialEuler"](steps=9), get_sampler("ddim", steps=9, grid="log_snr"))
    )
    torch.testing.assert_close(example.x, ddim.x, rtol=1e-9, atol=1e-9)
    assert example.nfe == ddim.nfe == 10


def test_the_page_of_networks_lists_what_there_is():
    page = (HOME / "docs" / "networks.md").read_text()
    first = [re.match(r"\| `(\w+)` \|", line) for line in page.splitlines()]
    assert {match[1] for match in first if match} == {*MODELS, *pretrained.FORMATS}
    assert f"lists all {len(PUBLISHED)}" in page
