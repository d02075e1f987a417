"""The page of a run: what the files say stands in it, and nothing that a file holds can break it."""

import base64
import io
import json
import os
import shutil

import numpy as np
import pytest
import torch
from pages import Page
from PIL import Image

from configs import default
from data import get_dataset
from evaluation.fidelity import HIGHER_IS_BETTER
from evaluation.fidelity import NAMES as NAMES_OF_METRICS
from evaluation.report import Section, Source, render, write_report
from evaluation.report.memorised import find_neighbours
from evaluation.report.page import SECTIONS
from evaluation.report.quality import TITLES

DEFAULT = json.loads(json.dumps(default.get_config().to_dict()))
NAMES = [section.name for section in SECTIONS]


def source(folder, config=None, dataset=lambda split: get_dataset("digits", split), **options):
    config = DEFAULT if config is None else config
    return Source(folder, config, DEFAULT, lambda mode: f"python run_lib.py --mode={mode}", dataset, **options)


def page(folder, *arguments, **options):
    return Page(render(source(folder, *arguments, **options)))


def put_samples(folder, values):
    """An array of samples, and a picture of the first."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "samples" / "deis_21nfe_seed0.npz", samples=values)
    Image.fromarray(values[0, 0]).save(folder / "samples" / "deis_21nfe_seed0.png")


def digits(split, indices):
    data = get_dataset("digits", split)
    return data.quantizer.to_uint8(data.quantizer.encode(data.fetch(indices).x)).numpy()


def put_likelihood(folder, name, values, estimate="ode", **changes):
    (folder / "likelihood").mkdir(exist_ok=True)
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    result = {"bits_per_dim": mean, "std_error": error, "values": values, "nfe": 50, "estimate": estimate}
    result |= {"data": {"split": "test"}, "checkpoint": "run/checkpoints/step_00000012", **changes}
    (folder / "likelihood" / name).write_text(json.dumps(result))


def put_quality(folder, sampler, nfe, fid, sd, changes=None, **others):
    (folder / "evaluation").mkdir(exist_ok=True)
    result = {"metrics": {"fid": {"mean": fid, "sd": sd, "draws": [fid]}}, "extractor": "digits", "images": 5000}
    result |= {"draws": 1, "seeds": [0], "split": "train", "sampler": sampler, "steps": nfe - 1, "nfe": nfe}
    result |= (
        {"checkpoint_step": 12, "seconds": 1.0, "provenance": f"by {sampler}", "settings": {}}
        | others
        | (changes or {})
    )
    (folder / "evaluation" / f"{sampler}_{nfe}.json").write_text(json.dumps(result))


def test_without_data_every_section_tells_how_to_make_it(tmp_path):
    made = page(tmp_path)
    assert [a["id"] for a in made.all("section")] == NAMES
    assert [a["href"] for a in made.all("a")][1:] == [f"#{name}" for name in NAMES]
    for section in SECTIONS:
        if section.name != "configuration":
            assert f"Nothing here yet. To make it: python run_lib.py --mode={section.mode}" in made.text[section.name]
    assert "All is as in the default." in made.text["configuration"]


def test_the_curves_are_those_of_the_metrics(tmp_path):
    rows = [{"step": 10 * k, "loss": 1 / k, "learning_rate": 0.1 * k, "grad_norm": float(k)} for k in range(1, 31)]
    bins = {"heldout_loss/log_snr_-10.0..-2.5": 0.25, "heldout_loss/log_snr_-2.5..5.0": 0.5}
    rows[9] |= {"heldout_loss": 0.75, **bins}
    rows[29] |= {"heldout_loss": 0.5, **{name: value / 2 for name, value in bins.items()}}
    lines = [json.dumps(row) for row in rows]
    lines.insert(7, '{"step": 75, "loss": NaN}')
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 310, "lo']))
    made = page(tmp_path)
    (last,) = made.tables["training"]
    assert ["loss", "300", "0.03333"] in last
    assert ["learning_rate", "300", "3"] in last
    assert ["heldout_loss", "300", "0.5"] in last
    (table,) = made.tables["log-snr"]
    head = ["log-SNR", "step 100", "step 300"]
    assert table == [head, ["−10 to −2.5", "0.25", "0.125"], ["−2.5 to 5", "0.5", "0.25"]]
    points = [a["points"].split() for name, a in made.elements["training"] if name == "polyline"]
    assert [len(line) for line in points] == [30, 30, 2, 30, 30, 30]  # loss, its mean, held-out; rate; norm, its mean
    assert "Held-out loss0.5at step 300" in made.text[""]
    assert "Steps300of" in made.text[""]
    (tmp_path / "checkpoints" / "step_00000305").mkdir(parents=True)  # of a run that was stopped between two records
    assert "Steps305of" in page(tmp_path).text[""]


def test_the_likelihoods_are_those_of_the_files(tmp_path):
    values = np.random.default_rng(0).normal(2.0, 0.1, 50).tolist()
    put_likelihood(tmp_path, "a.json", values)
    put_likelihood(tmp_path, "b.json", [v + 0.5 for v in values], estimate="elbo", importance_weighted=2.25)
    (tmp_path / "likelihood" / "broken.json").write_text('{"values": [1')
    put_likelihood(tmp_path, "nan.json", [float("nan"), 1.0])
    made = page(tmp_path)
    rows = {row[0]: row for row in made.tables["likelihood"][0]}
    mean, error = np.mean(values), np.std(values, ddof=1) / 50**0.5
    assert rows["ode"] == ["ode", f"{mean:.3f} ± {error:.3f}", "–", "50", "test", "50", "step_00000012", "a.json"]
    assert rows["elbo"][1:3] == [f"{mean + 0.5:.3f} ± {error:.3f}", "2.25"]
    assert f"Bits/dim{mean:.3f}± {error:.3f}, 50 samples of test, ODE" in made.text[""]
    assert "Left out as damaged: broken.json, nan.json." in made.text["likelihood"]
    assert len([a for name, a in made.elements["likelihood"] if name == "svg"]) == 2


def test_quality_is_drawn_only_among_what_can_be_compared(tmp_path):
    put_quality(tmp_path, "deis", 11, 9.0, 0.5)
    put_quality(tmp_path, "deis", 51, 3.0, 0.25)
    put_quality(tmp_path, "heun", 99, 4.0, None)
    put_quality(tmp_path, "pc", 1000, 2.0, 0.1, images=100)
    (tmp_path / "evaluation" / "odd.json").write_text('{"metrics": 3}')
    made = page(tmp_path)
    charts = [a["aria-label"] for name, a in made.elements["quality"] if name == "svg"]
    assert len(charts) == 2
    (first,) = [told for told in charts if "5000 samples against train" in told]
    assert "deis: from 9 to 3. heun: from 4 to 4." in first
    assert "pc" not in first
    rows = {tuple(row[:3]): row[3] for row in made.tables["quality"][0]}
    assert rows["deis", "50", "51"] == "3.00 ± 0.25"
    assert rows["heun", "98", "99"] == "4"
    assert "by heun" in made.text["quality"]
    assert "Left out as damaged: odd.json." in made.text["quality"]


def test_what_was_drawn_or_compared_otherwise_is_in_no_line_with_the_rest(tmp_path):
    put_quality(tmp_path, "deis", 11, 9.0, 0.5)
    put_quality(tmp_path, "deis", 12, 8.0, 0.5, settings={"sampling": {"guidance": 2.0}})
    put_quality(tmp_path, "deis", 13, 7.0, 0.5, settings={"sampling": {"labels": "3"}})
    put_quality(tmp_path, "deis", 14, 6.0, 0.5, reference={"pixels": "abcdef", "images": 30})
    made = page(tmp_path)
    charts = [a["aria-label"] for name, a in made.elements["quality"] if name == "svg"]
    assert len(charts) == 3
    assert any("deis: from 9 to 9. deis, guidance 2: from 8 to 8." in told for told in charts)
    assert any("labels 3. deis: from 7 to 7." in told for told in charts)
    assert any("30 of it (abcdef). deis: from 6 to 6." in told for told in charts)


def test_every_metric_has_a_title_that_says_which_way_is_better():
    metrics = {*NAMES_OF_METRICS[True], *NAMES_OF_METRICS[False], "precision", "recall"}
    assert set(TITLES) == metrics
    assert {name for name, (_, better) in TITLES.items() if better == "higher"} == set(HIGHER_IS_BETTER)


@pytest.mark.parametrize("name", ["metrics.jsonl", "commands.jsonl", "likelihood/a.json", "evaluation/a.json"])
def test_a_damaged_file_costs_its_section_and_no_more(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\xff\x00[]{")
    made = page(tmp_path)
    assert [a["id"] for a in made.all("section")] == NAMES
    if name.endswith(".json"):
        assert (
            "Its files cannot be used (ValueError: a.json damaged)"
            in made.text[name.split("/")[0].replace("evaluation", "quality")]
        )


HUGE = "9" * 400


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", f'{{"step": 1, "loss": {HUGE}}}\n{{"step": {HUGE}, "loss": 1.0}}'),
        ("metrics.jsonl", '{"a":' * 100_000),
        ("metrics.jsonl", None),
        ("likelihood/bad.json", {"std_error": "x"}),
        ("likelihood/bad.json", {"nfe": float("inf")}),
        ("likelihood/bad.json", {"importance_weighted": [1]}),
        ("evaluation/bad.json", {"nfe": float("inf")}),
        ("evaluation/bad.json", {"nfe": 0}),
        ("evaluation/bad.json", {"metrics": {"fid": {"mean": 1.0, "sd": "x"}}}),
        ("commands.jsonl", '{"mode": ["a"], "seconds": NaN, "command": "\\ud800"}'),
    ],
)
def test_one_that_is_damaged_hides_no_other(tmp_path, name, content):
    """The other results of a section stand in it, and the figures of the others in the head."""
    put_likelihood(tmp_path, "good.json", [2.0, 3.0])
    put_quality(tmp_path, "heun", 9, 4.25, 0.1)
    put_likelihood(tmp_path, "bad.json", [7.0, 8.0], **(content if name.startswith("l") else {}))
    put_quality(tmp_path, "bad", 9, 1.25, 0.1, content if name.startswith("e") else {})
    (tmp_path / "evaluation" / "bad_9.json").rename(tmp_path / "evaluation" / "bad.json")
    if content is None:
        (tmp_path / name).mkdir()
    elif isinstance(content, str):
        (tmp_path / name).write_text(content)
    made = Page(write_report(source(tmp_path)).read_text())
    for section, file, figure in (
        ("likelihood", "likelihood/bad.json", "2.50"),
        ("quality", "evaluation/bad.json", "4.25"),
    ):
        assert figure in made.text[section]
        assert ("Left out as damaged: bad.json" in made.text[section]) == (file == name)
    assert "cannot be used" not in made.text["commands"]


def test_errors_that_are_no_numbers_are_none(tmp_path):
    put_likelihood(tmp_path, "ode.json", [2.0, 3.0], std_error=float("nan"))
    put_quality(tmp_path, "heun", 9, 4.25, float("inf"))
    made = page(tmp_path)
    assert "2.5" in made.text["likelihood"]
    assert "4.25" in made.text["quality"]
    assert "±" not in made.text["quality"]


def test_ranges_of_log_snr_that_no_step_shares(tmp_path):
    names = ("heldout_loss/log_snr_-1.0..2.0", "heldout_loss/log_snr_2.0..3.0", "heldout_loss/log_snr_1.2.3..4.0")
    lines = [json.dumps({"step": step, name: 1.0}) for step, name in enumerate(names)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert "Nothing here yet" in page(tmp_path).text["log-snr"]


def test_names_and_things_that_are_no_pictures(tmp_path):
    put_samples(tmp_path, digits("test", range(4)))
    folder = tmp_path / "samples"
    for name in ("step_²", "step_1", os.fsdecode(b"step_\xe9")):
        shutil.copy(folder / "deis_21nfe_seed0.png", folder / f"{name}.png")
    (folder / "zz.png").mkdir()
    (folder / "zzz.png").symlink_to("nowhere")
    assert "cannot be used" not in Page(write_report(source(tmp_path)).read_text()).text["samples"]


def test_an_array_of_samples_that_is_damaged_is_named(tmp_path):
    put_samples(tmp_path, digits("test", range(4)))
    path = tmp_path / "samples" / "deis_21nfe_seed0.npz"
    path.write_bytes(path.read_bytes()[:-100])
    assert "samples/deis_21nfe_seed0.npz is damaged" in page(tmp_path).text["memorisation"]


def test_a_search_that_was_cut_off_is_done_again(tmp_path):
    put_samples(tmp_path, digits("test", range(4)))
    before = page(tmp_path).text["memorisation"]
    kept = tmp_path / "nearest.npz"
    kept.write_bytes(kept.read_bytes()[:-100])
    assert page(tmp_path).text["memorisation"] == before


def test_damaged_pictures(tmp_path):
    (tmp_path / "samples").mkdir()
    for end in (".png", ".npz", "_trajectory.gif"):
        (tmp_path / "samples" / f"deis{end}").write_bytes(b"no picture")
    made = page(tmp_path)
    for name in ("samples", "trajectory", "memorisation"):
        assert "Its files cannot be used" in made.text[name]


def test_nothing_in_a_file_becomes_markup(tmp_path):
    evil = "<script>alert(1)</script>\" onload='x' &amp;"
    config = json.loads(json.dumps(DEFAULT))
    config["data"]["root"] = evil
    (tmp_path / "commands.jsonl").write_text(json.dumps({"date": evil, "mode": evil, "command": evil, "machine": evil}))
    put_quality(tmp_path, "deis", 11, 9.0, 0.5, provenance=evil, extractor=evil)
    put_likelihood(tmp_path, "a.json", [1.0, 2.0], estimate=evil)
    text = render(source(tmp_path, config))
    assert text.count("<script>") == 1
    made = Page(text)
    assert ["data.root", evil, '""'] in made.tables["configuration"][0]
    assert made.tables["commands"][0][1][3] == evil
    assert evil in made.text["quality"]
    assert not any(name.startswith("on") for found in made.elements.values() for _, a in found for name in a)


def test_the_configuration_shows_differences_first(tmp_path):
    config = json.loads(json.dumps(DEFAULT))
    config["training"]["batch_size"], config["model"]["channel_mult"] = 32, [1, 2]
    made = page(tmp_path, config)
    head = ["setting", "here", "default"]
    expected = [["model.channel_mult", "[1, 2]", "[1, 2, 2, 2]"], ["training.batch_size", "32", "128"]]
    assert [made.tables["configuration"][0][0], *sorted(made.tables["configuration"][0][1:])] == [head, *expected]
    assert json.dumps(config, indent=2) in made.text["configuration"]


def test_a_copy_of_a_training_image_is_flagged(tmp_path):
    values = digits("test", range(20, 40))
    values[7] = digits("train", [123])[0]
    put_samples(tmp_path, values)
    made = page(tmp_path)
    told = made.text["memorisation"]
    assert "1 of 20 samples is nearer to a training image than 99% of held-out images are" in told
    assert "1 of them equals one" in told
    assert "Looked at all 1,500 training images." in told
    pairs = [a["alt"] for name, a in made.elements["memorisation"] if name == "img"]
    assert len(pairs) == 12
    assert pairs[0] == "Sample 7 beside training image 123"
    assert told.count("flagged") == 2  # in the legend, and at the pair
    shown = next(a["src"] for name, a in made.elements["memorisation"] if name == "img")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))))[4::8, 4::8, 0]
    assert np.array_equal(pixels, np.concatenate([values[7, 0], values[7, 0]], axis=1))


def test_held_out_images_are_flagged_as_often_as_is_said(tmp_path):
    found = find_neighbours(source(tmp_path), torch.from_numpy(digits("test", range(256))))
    assert np.array_equal(
        np.sort(found.heldout),
        np.sort(find_neighbours(source(tmp_path), torch.from_numpy(digits("test", range(0, 297, 2)))).samples),
    )
    assert found.flagged.mean() < 0.03


def test_the_search_is_done_once_for_the_same_samples(tmp_path):
    put_samples(tmp_path, digits("test", range(4)))
    first = page(tmp_path).text["memorisation"]

    def gone(split):
        raise FileNotFoundError(f"no {split}")

    assert page(tmp_path, dataset=gone).text["memorisation"] == first
    put_samples(tmp_path, digits("test", range(5)))
    assert "Its files cannot be used (FileNotFoundError: no train)" in page(tmp_path, dataset=gone).text["memorisation"]
    (tmp_path / "nearest.npz").write_bytes(b"damaged")
    assert " of 5 samples are nearer" in page(tmp_path).text["memorisation"]
    assert "Looked at 750 of 1,500" in page(tmp_path, training_images=800).text["memorisation"]
    assert "Nothing here yet" in page(tmp_path, training_images=0).text["memorisation"]


def test_large_pictures_are_made_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    (tmp_path / "samples").mkdir()
    Image.fromarray(noise).save(tmp_path / "samples" / "deis.png")
    path = write_report(source(tmp_path))
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 1_500_000
    (shown,) = Page(path.read_text()).all("img")
    image = Image.open(io.BytesIO(base64.b64decode(shown["src"].partition(",")[2])))
    assert image.size == (1200, 800) == (int(shown["width"]), int(shown["height"]))


def test_long_runs_make_no_large_page(tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            values = {name: float(rng.normal()) for name in ("loss", "grad_norm", "learning_rate", "images_per_second")}
            file.write(json.dumps({"step": step, **values}) + "\n")
    assert len(render(source(tmp_path))) < 150_000


def test_the_page_asks_nobody_for_anything(tmp_path):
    put_samples(tmp_path, digits("test", range(3)))
    made = page(tmp_path)
    policy = [a["content"] for a in made.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'; img-src data:;")
    links = [a.get("src") or a.get("href") for name in ("img", "a", "link", "script") for a in made.all(name)]
    assert all(link is None or link.startswith(("data:", "#")) for link in links)
    assert all(a["alt"] for a in made.all("img"))
    assert all(a["aria-label"] for a in made.all("svg"))


def test_a_section_that_fails_in_any_way_is_a_line(tmp_path):
    def fails(source):
        raise RecursionError("deep <b>\nsecond line")

    made = Page(render(source(tmp_path), [Section("odd", "Odd", fails, "train", "again")]))
    assert made.text["odd"] == (
        "OddIts files cannot be used (RecursionError: deep <b>). To make it: python run_lib.py --mode=train again."
    )
