"""The one lookup: what it returns, and what it says."""

import pytest

from sde_lib import METHODS, PREDICTIONS, SDES, TIME_LAWS, WEIGHTINGS, lookup

TABLES = {"process": SDES, "prediction": PREDICTIONS, "weighting": WEIGHTINGS, "time law": TIME_LAWS, "method": METHODS}


@pytest.mark.parametrize("kind", TABLES)
def test_every_name_finds_its_own_entry(kind):
    for name, entry in TABLES[kind].items():
        assert lookup(TABLES[kind], name, kind) is entry


@pytest.mark.parametrize("kind", TABLES)
def test_an_unknown_name_is_answered_with_all_names(kind):
    with pytest.raises(ValueError, match=f"unknown {kind} 'zzz'") as caught:
        lookup(TABLES[kind], "zzz", kind)
    listed = ", ".join(repr(name) for name in sorted(TABLES[kind]))
    assert str(caught.value) == f"unknown {kind} 'zzz'; choose from {listed}"


@pytest.mark.parametrize("kind", TABLES)
def test_a_typo_is_answered_with_the_name_that_was_meant(kind):
    for name in TABLES[kind]:
        if len(name) > 3:
            with pytest.raises(ValueError, match=f"; did you mean '{name}'\\?$"):
                lookup(TABLES[kind], name + "s", kind)


@pytest.mark.parametrize("name", [None, 3, 1.5, ("vp",), ["vp"]])
def test_what_is_not_a_name_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown process .*; choose from 'cosine'"):
        lookup(SDES, name, "process")


def test_case_matters_but_is_forgiven_in_the_hint():
    with pytest.raises(ValueError, match=r"unknown process 'Cosine'; choose from .*; did you mean 'cosine'\?$"):
        lookup(SDES, "Cosine", "process")
