"""Charts and markup: data where they belong, to the pixel, and text that stays text."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.report.axes import MOST_TICKS, Axis, label
from evaluation.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, bins_of, histogram, line_chart
from evaluation.report.markup import figure, number, table, tag
from evaluation.report.records import Column, decimate, smooth

finite = st.floats(-1e6, 1e6, allow_nan=False)


def drawing(markup):
    return ElementTree.fromstring(str(markup)).find("svg")


def lines(markup):
    """The points of each line, in pixels."""
    found = [line.get("points").split() for line in drawing(markup).iter("polyline")]
    return [np.array([[float(v) for v in point.split(",")] for point in points]) for points in found]


@pytest.mark.parametrize("log", [False, True])
def test_an_axis_is_linear_in_the_value_or_its_logarithm(log):
    axis = Axis(2.0, 200.0, 300.0, 100.0, log)
    assert [axis(2.0), axis(200.0)] == [300.0, 100.0]
    assert axis(20.0) == pytest.approx(200.0 if log else 300 - 200 * 18 / 198)


@settings(max_examples=50)
@given(st.lists(finite, min_size=1), st.booleans())
def test_ticks_are_round_few_and_on_the_axis(values, log):
    values = [abs(v) + 1e-3 for v in values] if log else values
    axis = Axis.around(values, 0, 400, log=log, pad=0.05)
    pixels = [axis(v) for v in values]
    assert -1e-6 <= min(pixels) <= max(pixels) <= 400 + 1e-6
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= MOST_TICKS + 1
    assert ticks == sorted(set(ticks))
    assert all(-1 <= axis(tick) <= 401 for tick in ticks)


def test_ticks_where_they_are_known():
    assert Axis(0, 10, 0, 1).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis(-0.11, 0.31, 0, 1).ticks() == [-0.1, 0, 0.1, 0.2, 0.3]
    assert Axis(1, 1000, 0, 1, True).ticks() == [1, 10, 100, 1000]
    assert Axis(10, 500, 0, 1, True).ticks() == [10, 30, 100, 300]
    known = {0: "0", 500: "500", 1500: "1.5k", 2000: "2k", 15_000: "15k", 3e6: "3M"}
    known |= {0.002: "0.002", -5: "−5", 2e-5: "2e−5"}
    assert {value: label(value) for value in known} == known


def test_a_line_maps_data_to_pixels():
    x, y = [0.0, 3.0, 10.0], [1.0, -1.0, 4.0]
    (found,) = lines(line_chart("title", [Series("a", x, y)], "step"))
    low, high = 0 - 0.02 * 10, 10 + 0.02 * 10
    left = [LEFT + (WIDTH - RIGHT - LEFT) * (v - low) / (high - low) for v in x]
    low, high = -1 - 0.06 * 5, 4 + 0.06 * 5
    top = [HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (v - low) / (high - low) for v in y]
    np.testing.assert_allclose(found, np.stack([left, top], 1), atol=0.005 + 1e-9)


def test_a_logarithmic_line_leaves_out_what_is_not_above_zero():
    (found,) = lines(
        line_chart("t", [Series("a", [1, 10, 100, 1000], [1, 0.0, 0.01, 10])], "n", log_x=True, log_y=True)
    )
    assert len(found) == 3
    share = (found[1] - found[0]) / (found[2] - found[0])  # of log x from 1 to 1000, of log y from 1 to 10
    np.testing.assert_allclose(share, [2 / 3, -2], atol=1e-3)


def test_error_bars_and_marks():
    chart = line_chart("t", [Series("a", [1, 2], [5.0, 7.0], [1.0, None], marked=True)], "n")
    (points,) = lines(chart)
    (bar,) = [path.get("d") for path in drawing(chart).iter("path") if path.get("class") is None]
    left, high, low = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)", bar).groups())
    scale = (points[0, 1] - points[1, 1]) / 2  # pixels of 1
    assert left == pytest.approx(points[0, 0], abs=0.01)
    assert sorted([low, high]) == pytest.approx([points[0, 1] - scale, points[0, 1] + scale], abs=0.02)
    titles = [title.text for title in drawing(chart).iter("title")]
    assert titles == ["a: 1, 5 ± 1", "a: 2, 7"]


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to draw for 't'"):
        line_chart("t", [Series("a", [1], [-1.0])], "n", log_y=True)


def test_a_histogram_has_the_shares_of_numpy():
    values = np.random.default_rng(0).normal(size=200)
    chart = histogram("t", [("all", values.tolist())], "v", mark=("mean", 0.25), band=0.5)
    (path,) = [p.get("d") for p in drawing(chart).iter("path") if p.get("class") == "bars c1"]
    tops = np.array([float(v) for v in re.findall(r"V([\d.]+)H", path)])
    rights = np.array([float(v) for v in re.findall(r"H([\d.]+)", path)])
    counts, edges = np.histogram(values, bins_of(200))
    base = HEIGHT - BOTTOM
    np.testing.assert_allclose((base - tops) / (base - tops).max(), counts / counts.max(), atol=1e-3)
    np.testing.assert_allclose(np.diff(rights), np.diff(rights)[0], atol=0.02)
    (band,) = drawing(chart).iter("rect")
    (mark,) = [p.get("d") for p in drawing(chart).iter("path") if p.get("class") == "mark"]
    per_unit = (rights[-1] - rights[0]) / (edges[-1] - edges[1])
    assert float(band.get("width")) == pytest.approx(per_unit, rel=1e-3)
    centre = float(re.match(r"M([\d.]+) ", mark)[1])
    assert centre == pytest.approx(rights[0] + per_unit * (0.25 - edges[1]), abs=0.05)
    assert float(band.get("x")) == pytest.approx(centre - per_unit / 2, abs=0.05)


@settings(max_examples=50)
@given(st.text())
def test_text_stays_text(text):
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", text)
    made = ElementTree.fromstring(str(tag("p", text, tag("b", text), title=text)))
    assert (made.text or "", made[0].text or "", made.get("title")) == (text, text, text)


def test_attributes_and_tables():
    assert tag("input", type="range", aria_label="a", hidden=True, max=None, class_="x") == (
        '<input type="range" aria-label="a" hidden class="x">'
    )
    made = ElementTree.fromstring(str(table(["a", "b"], [["x", "<"]], "c")).replace(" ", " "))
    assert [cell.text for cell in made.iter("th")] == ["a", "b", "x"]
    assert [cell.text for cell in made.iter("td")] == ["<"]


def test_figures_have_the_digits_of_their_errors():
    assert figure(1.92374, 0.0151) == "1.924 ± 0.015"
    assert figure(3.3, 0.099) == "3.300 ± 0.099"
    assert figure(120.4, 12.0) == "120 ± 12"
    assert figure(-1.5, 0.11) == "−1.50 ± 0.11"
    assert figure(2.0, None) == figure(2.0, 0.0) == "2"
    assert [number(v) for v in (None, 3, -0.12345, 1e-7, "a-b")] == ["–", "3", "−0.1235", "1e-07", "a-b"]


@pytest.mark.parametrize("count", [1, 400, 401, 5000])
def test_few_points_keep_the_extremes(count):
    values = np.random.default_rng(0).normal(size=count)
    column = Column(np.arange(count) * 2.0, values)
    steps, kept = decimate(column)
    assert len(steps) <= 400
    assert (len(steps) == count) == (count <= 400)
    assert [kept.min(), kept.max()] == [values.min(), values.max()]
    assert (np.diff(steps) > 0).all()
    assert np.array_equal(kept, values[(steps / 2).astype(int)])


def test_the_running_mean_is_one():
    values = np.random.default_rng(0).normal(size=101)
    smoothed = smooth(Column(np.arange(101.0), values), share=0.1).values
    expected = [np.mean(values[max(0, i - 5) : i + 6]) for i in range(101)]
    np.testing.assert_allclose(smoothed, expected, atol=1e-12)
    assert math.isclose(smooth(Column(np.array([1.0]), np.array([3.0]))).values[0], 3.0)
