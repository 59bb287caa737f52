"""Tables, picture and published numbers are those of the result lines. No times here."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("matplotlib", reason="the benchmarks plot with matplotlib")

from matplotlib.image import imread  # noqa: E402

from benchmarks import headline, picture, records, report, tables  # noqa: E402
from benchmarks.workloads import CELLS, FORM_PEERS, LAYOUT_PEERS, MODES, RESET_PEERS  # noqa: E402

ORIGIN = ["commit", "date", "isa", "torch", "onnxruntime", "cpu", "cores"]


def figures(median: float, spread: float = 0.1, rate: float = 1.0) -> dict[str, float]:
    """Of a peer whose quartiles are apart by a tenth of the median."""
    quartiles = {"q1_s": (1 - spread / 2) * median, "q3_s": (1 + spread / 2) * median}
    rates = {"us_per_token": median, "gflops": rate, "mm_share": rate}
    return {"median_s": median, **quartiles, **rates}


def line(group: str, peers: dict[str, Any], **fields: object) -> dict[str, Any]:
    """A line as older versions wrote it, without the fields that came later."""
    usual = {"cell": "lstm", "mode": "inference", "B": 4, "T": 6, "I": 3, "H": 5, "threads": 2}
    usual |= {"distribution": "uniform", "dtype": "float32", "device": "cpu", "device_name": None}
    usual |= {"valid_share": 0.5, "tests": "passed", **dict.fromkeys(ORIGIN, "x"), **fields}
    return {"name": f"{group}/{fields}", "group": group, **usual, "peers": peers}


def sample(**fields: object) -> list[dict[str, Any]]:
    """What a run on two thread counts might have written; ours takes 1 s, others 2 s."""
    theirs = figures(2.0, spread=0.5, rate=0.5)
    peers = {"varlen_rnn": figures(1.0), "nn padded": theirs, "onnxruntime": theirs}
    training = {**peers, "onnxruntime": {"skipped": "not installed"}}
    by_mode = dict(zip(MODES, (peers, training), strict=True))
    kinds = [{"cell": cell, "mode": mode} for cell in CELLS for mode in MODES]
    lines = [line("shapes", by_mode[kind["mode"]], **kind, **fields) for kind in kinds]
    lines += [line("threads", by_mode[k["mode"]], **k, **fields, threads=1) for k in kinds]
    lines += [line("growth", training, mode="training", T=steps, **fields) for steps in (6, 60)]
    lines += [line("step", peers, B=1, T=1, **fields)]
    return [*lines, line("lengths", peers, distribution="linspace", **fields)]


def written(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_file_has_its_tables_and_picture_beside_it(tmp_path: Path) -> None:
    assert report.main([written(tmp_path / "cpu.jsonl", sample())]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.jsonl", "cpu.md", "cpu.png"]
    colours = {tuple(c) for c in imread(tmp_path / "cpu.png").reshape(-1, 4)[::7].tolist()}
    assert len(colours) > 10
    text = (tmp_path / "cpu.md").read_text()
    assert "### LSTM, training, by shapes: GF on valid tokens" in text
    assert "| B, T, I = H | valid | varlen_rnn | nn padded | onnxruntime |" in text
    assert "| 4, 6, 3, 5 | 50% | 1 | 0.5 | 0.5 | 100% | 2.00 × | 50% |" in text
    assert "| linspace (4, 6, 3, 5) | 50% | 1 |" in text
    assert "Geometric means of varlen_rnn's speed: 2.00 × the best peer, " in text
    for threads in (1, 2):
        assert f"| 4, 6, 3, 5; {threads} | 50% | 1 |" in text
    assert "| 60 | 1 | 2 | 50% |" in text
    assert "Ratio from T = 6 to 60: varlen_rnn 1.00, nn padded 1.00." in text


def test_no_line_has_two_units() -> None:
    published = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for text in (tables.markdown(sample()), published.split(report.BEGIN)[1]):
        assert "GF" in text
        assert "µs" in text
        assert not [x for x in text.splitlines() if "GF" in x and re.search("µs|ms", x)]


def test_tables_of_forms() -> None:
    calls = (0.022, 0.02, 0.021, 0.024, 0.0201, 0.0203, 0.023)
    layouts = (220e-6, 10e-6, 210e-6, 240e-6, 201e-6, 609e-6, 230e-6)
    forms = dict(zip(FORM_PEERS.values(), map(figures, calls), strict=True))
    alone = dict(zip(LAYOUT_PEERS.values(), map(figures, layouts), strict=True))
    alone["layout flat"]["q3_s"] *= 1.2
    lines = [line("forms", forms | alone), line("forms", forms, cell="gru", mode="training")]
    text = tables.markdown(lines)
    assert "### Forms of one batch, B, T, I = H = 4, 6, 3, 5: ms a call (to packed)" in text
    assert "|  | lengths | packed | mask | left mask | flat | nested | resets | spread |" in text
    assert "| LSTM, inference | 22 (1.10 ×) | 20 (1.00 ×) | 21 (1.05 ×) |" in text
    assert "| GRU, training | 22 (1.10 ×) | 20 (1.00 ×) |" in text
    slowest = "The slowest form takes 1.200 times as long as packed (left mask, LSTM, inference)."
    assert slowest in text
    assert "### Layouts of one batch, B, T, I = H = 4, 6, 3, 5: µs (of the call)" in text
    assert "| LSTM, inference | 220 (1.0%) | 10 (0.1%) |" in text
    assert "| 609 (3.0%) | 230 (1.0%) | 31% |" in text
    assert "A layout takes at most 3.0% of a forward pass (nested, LSTM, inference)." in text


def test_tables_of_resets() -> None:
    lines = []
    for rows, probability, *times in (
        (8, 0.0, 0.01, 0.0099, 0.07, 0.02),
        (8, 0.001, 0.0104, 0.01, 0.06),
        (256, 0.1, 0.2, 0.21, 0.5),
    ):
        peers = dict(zip((*RESET_PEERS, "nn padded"), map(figures, times), strict=False))
        lines += [line("resets", peers, mode="training", B=rows, reset_probability=probability)]
    text = tables.markdown(lines)
    assert "### LSTM, training, T = 6, H = 5, by probability of a reset: ms" in text
    header = "| B; probability | varlen_rnn | varlen_rnn without resets | nn step loop | nn padded"
    assert f"{header} | to the loop | with / without resets | spread |" in text
    assert "| 8; 0 | 10 | 9.9 | 70 | 20 | 7.00 × | 1.010 | 10% |" in text
    assert "| 8; 0.001 | 10.4 | 10 | 60 |  | 5.77 × | 1.040 | 10% |" in text
    assert "| 256; 0.1 | 200 | 210 | 500 |  | 2.50 × | 0.952 | 10% |" in text
    assert "of the loop: at least 5.77 × at B = 8 and 2.50 × at B = 256. With" in text
    assert "it takes at most 1.040 times as long as without." in text


def test_the_last_line_of_a_workload_counts(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    written(old, sample(commit="old"))
    # The same name, as the commit is no part of it.
    written(new, [{**sample(commit="old")[0], "commit": "new"}])
    loaded = records.load(old, new)
    assert Counter(r["commit"] for r in loaded) == {"new": 1, "old": len(loaded) - 1}


PUBLISHED = sorted(records.RESULTS.glob("*.jsonl"))


@pytest.mark.parametrize("path", [p for p in PUBLISHED if "cpu" in p.name], ids=lambda p: p.stem)
def test_committed_results_can_be_read(path: Path) -> None:
    lines = records.load(path)
    text = tables.markdown(lines)
    groups = {r["group"] for r in lines}
    assert groups <= set(tables.BY_KIND)
    assert text.count("\n### ") >= len(groups) - 1


@pytest.mark.parametrize("name", report.blocks())
def test_what_is_published_is_fresh(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    fresh = report.between_markers(text).strip() == report.blocks()[name].strip()
    assert fresh, f"{name} is stale: python -m benchmarks.report --publish"


@pytest.mark.parametrize("theme", picture.THEMES)
def test_the_picture_is_fresh(theme: str) -> None:
    path = ROOT / "docs" / "images" / f"speed-{theme}.svg"
    stale = "the picture is stale: python -m benchmarks.report --publish"
    assert picture.digest_in(path) == picture.digest(report.published()), stale


def test_the_picture_says_its_numbers() -> None:
    drawn = picture.content(report.published())
    for theme in picture.THEMES:
        path = ROOT / "docs" / "images" / f"speed-{theme}.svg"
        root = xml.etree.ElementTree.parse(path)
        texts = {"".join(element.itertext()) for element in root.iterfind(".//{*}text")}
        for bar in drawn["bars"]:
            assert {f"{bar['ms'][peer]} ms" for peer in records.NN} <= texts
            times = f"{bar['times'][0]} to {bar['times'][-1]} times as fast"
            assert f"{bar['ms']['varlen_rnn']} ms: {times}" in texts
        for peer, points in drawn["growth"].items():
            ending = f"{points[0][1]} to {points[-1][1]} µs"
            assert any(text.endswith(ending) for text in texts), peer


def test_a_picture_goes_stale_with_its_numbers_alone() -> None:
    published = report.published()
    before = picture.digest(published)
    assert picture.digest([{**r, "commit": "another"} for r in published]) == before
    (bar,) = records.chosen(
        published, group="shapes", mode="training", cell="gru", B=32, T=100, H=256
    )
    bar["peers"]["nn packed"]["median_s"] *= 1.01
    assert picture.digest(published) != before


def test_unchecked_numbers_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SPEED", tmp_path / "cpu.jsonl")
    written(report.SPEED, sample(tests="skipped"))
    with pytest.raises(ValueError, match="must have tests passed"):
        report.published()


def test_publishing_needs_the_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    with pytest.raises(ValueError, match="must have one line"):
        list(report.publish(tmp_path))
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for path in (readme, tmp_path / "docs" / "results.md"):
        path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert len(list(report.publish(tmp_path))) == 4
    assert readme.read_text().startswith(f"before\n{report.BEGIN}\n\n- A training step")
    assert readme.read_text().endswith(f"\n{report.END}\nafter\n")
    assert "old" not in readme.read_text()


def test_the_answer_is_the_geometric_mean() -> None:
    peers = [{"varlen_rnn": 1.0, "nn padded": 2.0, "nn packed": 9.0, "nn loop": 0.1}]
    peers += [{"varlen_rnn": 1.0, "nn padded": 9.0, "nn packed": 8.0}]
    lines = [
        line("shapes", {name: figures(s) for name, s in of.items()}, mode="training", B=b)
        for b, of in enumerate(peers)
    ]
    said = headline.answer(lines, "lstm", "on this machine")
    assert said == "VarLenLSTM trains 4.0 times as fast as nn.LSTM on this machine"
    text = headline.milliseconds(lines)
    assert "| LSTM 0, 6, 5 | 1000 | 2000 | 9000 | 2.0 times |" in text
    assert "| LSTM 1, 6, 5 | 1000 | 9000 | 8000 | 8.0 times |" in text
