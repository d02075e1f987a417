"""Labels as they are written, hidden and checked."""

import pytest
import torch

from data.labels import hide_labels, parse_labels

NAMES = ("Smiling", "Male", "Eyeglasses")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3, 3, 3, 3]), ("3,5", [3, 5, 3, 5]), (" 1 , 0,2", [1, 0, 2, 1]), ("none", [-1] * 4)],
)
def test_classes_by_number(text, expected):
    assert parse_labels(text, 4, num_classes=10).tolist() == expected


def test_classes_by_name_and_by_number():
    assert parse_labels("dog,0", 3, num_classes=2, names=("cat", "dog")).tolist() == [1, 0, 1]
    assert parse_labels("1", 1, num_classes=2, names=("1", "0")).tolist() == [0]  # a name goes first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Smiling=1", [[1, -1, -1]] * 3),
        ("Eyeglasses=0, Smiling=1", [[1, -1, 0]] * 3),
        ("Smiling=1;Male=0,Smiling=0", [[1, -1, -1], [0, 0, -1], [1, -1, -1]]),
        ("2=1", [[-1, -1, 1]] * 3),
        ("none", [[-1, -1, -1]] * 3),
    ],
)
def test_attributes(text, expected):
    assert parse_labels(text, 3, num_attributes=3, names=NAMES).tolist() == expected


@pytest.mark.parametrize(
    ("text", "kinds", "match"),
    [
        ("10", {"num_classes": 10}, r"unknown class \(labels\) '10'"),
        ("ca", {"num_classes": 2, "names": ("cat", "dog")}, "unknown class .*did you mean 'cat'"),
        ("Smiling=1", {"num_classes": 10}, "the labels of this data set are classes; give such as '3'"),
        ("smiling=1", {"num_attributes": 3, "names": NAMES}, "unknown attribute .* 'smiling'.*did you mean 'Smiling'"),
        ("Smiling", {"num_attributes": 3, "names": NAMES}, "'Smiling': give attributes as NAME=1 or NAME=0"),
        ("Smiling=2", {"num_attributes": 3, "names": NAMES}, "'Smiling=2': give attributes as NAME=1 or NAME=0"),
        ("Smiling=1,", {"num_attributes": 3, "names": NAMES}, "give attributes as NAME=1 or NAME=0"),
    ],
)
def test_labels_that_are_not_there(text, kinds, match):
    with pytest.raises(ValueError, match=match):
        parse_labels(text, 2, **kinds)


def test_hidden_classes_have_the_stated_share_and_the_others_stay():
    y = torch.arange(10).repeat(4000)
    hidden = hide_labels(y, 0.2, generator=torch.Generator().manual_seed(0))
    gone = hidden == -1
    assert torch.equal(hidden[~gone], y[~gone])
    assert abs(gone.double().mean() - 0.2) < 5 * (0.16 / len(y)) ** 0.5
    assert torch.equal(hide_labels(y, 0.0), y)
    assert (hide_labels(y, 1.0) == -1).all()


def test_attributes_are_hidden_wholly_or_in_any_number():
    """With share s and partly p the number hidden is A with s, uniform on 0 .. A with (1 - s) p, and else 0."""
    count, share, partly, n = 4, 0.3, 0.6, 60_000
    y = torch.randint(0, 2, (n, count))
    hidden = hide_labels(y, share, partly, torch.Generator().manual_seed(1))
    gone = hidden == -1
    assert torch.equal(hidden[~gone], y[~gone])
    frequencies = torch.bincount(gone.sum(1), minlength=count + 1) / n
    even = (1 - share) * partly / (count + 1)  # k of A at a uniform rate are hidden with probability 1 / (A + 1)
    expected = torch.full((count + 1,), even)
    expected[0] += (1 - share) * (1 - partly)
    expected[count] += share
    assert torch.all((frequencies - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt())
    each = gone.double().mean(0)
    assert (each - each.mean()).abs().max() < 0.01
