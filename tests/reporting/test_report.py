"""The report's command and its page, from made run folders."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pydiffaccel.report import main
from pydiffaccel.reporting.page import coupling_rows, different_options, page
from pydiffaccel.reporting.runs import Run, names_of, read_run

from .conftest import MakeRun, rows

VOID = {"meta", "link", "input", "img", "br", "path", "polyline", "line"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails where a tag is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, name: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of all elements of that name, and class."""
        return [a for tag, a in self.tags if tag == name and (not kind or kind in (a.get("class") or "").split())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(folder: Path, name: str = "run", grids: int = 8) -> Run:
    return read_run(folder, name, grids=grids)


def shown(*folders: Path, smoothing: float = 0.02) -> Page:
    runs = [read(folder, folder.name) for folder in folders]
    return Page(page(runs, title="A title", smoothing=smoothing))


# --- the command


def test_writes_one_page_that_asks_for_nothing_else(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_run("plain"), make_run("paired", coupling="hungarian")]
    out = tmp_path / "deep" / "report.html"
    assert main([*map(str, folders), "--output", str(out)]) == 0
    assert f"{out} holds the report" in capsys.readouterr().out
    text = out.read_text()
    parsed = Page(text)
    assert "plain, paired" in parsed.text
    for tag, attributes in parsed.tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://|//[a-z]+\.|fetch\(|XMLHttpRequest|import\(", text)
    # The same again is the same page.
    assert main([*map(str, folders), "--output", str(out)]) == 0
    assert out.read_text() == text


def test_dry_run_writes_nothing(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.html"
    assert main([str(make_run("a")), "--output", str(out), "--dry_run"]) == 0
    assert "200 steps, 3 grids of samples" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "code", "match"),
    [
        ((), 2, "give at least one folder of a run"),
        (("no/where",), 1, "no/where does not exist; give the folders of runs of: python -m pydiffaccel.train"),
        (("{a}", "--smoothing", "1.5"), 2, r"--smoothing must be in \[0, 1\], got 1.5"),
        (("{a}", "--smoothing", "nan"), 2, r"--smoothing must be in \[0, 1\], got nan"),
        (("{a}", "--grids", "-1"), 2, "--grids must be at least 0, got -1"),
        (("{a}", "{a}"), 1, "is given twice"),
        (("{a}", "--output", "{a}"), 1, "is a folder; give a file as --output"),
        (("{a}/samples",), 1, "holds no run"),
        (("{a}/options.json",), 1, "is a file"),
        (("{a}", "--outptu", "x"), 2, "--output"),
    ],
)
def test_bad_usage(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], code: int, match: str
) -> None:
    folder = make_run("a")
    assert main([part.format(a=folder) for part in argv]) == code
    said = capsys.readouterr().err
    assert re.search(match, said)
    assert said.count("\n") == 1


def test_options_that_cannot_be_read(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run("a")
    (folder / "options.json").write_text("{")
    assert main([str(folder)]) == 1
    assert "options.json is no JSON file" in capsys.readouterr().err


# --- reading runs


def test_names_are_as_short_as_can_be() -> None:
    assert names_of([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert names_of([Path("x/a"), Path("y/a"), Path("y/b")]) == ["x/a", "y/a", "y/b"]


def test_a_run_that_goes_on_is_read_as_it_is(make_run: MakeRun) -> None:
    lines = [*rows(40), '{"step": 41, "lo']
    folder = make_run("a", steps=100, lines=lines, finished=False, grids=(20, 40))
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().rstrip("\n"))
    run = read(folder)
    assert (run.steps, run.finished, [grid.step for grid in run.grids]) == (40, False, [20, 40])
    assert "unfinished, of 100" in shown(folder).text
    assert any("1 line of metrics.jsonl left out" in note for note in run.notes)


def test_a_summary_of_fewer_steps_is_left_out(make_run: MakeRun) -> None:
    folder = make_run("a", steps=50)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    run = read(folder)
    assert run.summary == {}
    assert not run.finished
    # Its picture is still one of step 50.
    assert [grid.step for grid in run.grids] == [50, 100]


@pytest.mark.parametrize("name", ["summary.json", "process.json", "evaluation.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000])
def test_damaged_files_are_noted(make_run: MakeRun, name: str, text: str) -> None:
    folder = make_run("a")
    (folder / name).write_text(text)
    assert f"{name} cannot be read and is left out" in read(folder).notes
    assert name in shown(folder).text


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", "half"])
def test_damaged_pictures_are_noted(make_run: MakeRun, content: bytes | str) -> None:
    folder = make_run("a", grids=(50, 100))
    path = folder / "samples" / "step_00000100.png"
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:4000])
    run = read(folder)
    assert [grid.step for grid in run.grids] == [50, 200]
    assert "1 picture left out, not readable: step_00000100.png" in run.notes


@pytest.mark.parametrize(("most", "steps"), [(0, []), (1, [200]), (2, [10, 200]), (3, [10, 110, 200])])
def test_grids_are_spread_over_the_run(make_run: MakeRun, most: int, steps: list[int]) -> None:
    folder = make_run("a", grids=range(10, 200, 10))
    assert [grid.step for grid in read(folder, grids=most).grids] == steps
    assert len(read(folder, grids=100).grids) == 20


def test_options_of_an_older_run_get_their_defaults(make_run: MakeRun) -> None:
    old, new = make_run("old"), make_run("new", learning_rate=1e-3)
    options = json.loads((old / "options.json").read_text())
    for name in ("report_to", "sample_every"):
        del options[name]
    (old / "options.json").write_text(json.dumps({**options, "of_tomorrow": 3}))
    different = different_options([read(old), read(new)])
    assert different == {"learning_rate": [2e-3, 1e-3], "of_tomorrow": [3, None]}


# --- the page


def test_charts_over_three_positions_with_their_figures(make_run: MakeRun) -> None:
    parsed = shown(make_run("plain"), make_run("paired", coupling="hungarian"))
    titles = ("Loss", "Norm of the gradient", "Learning rate", "Cost reduction", "Mean square of the selected noise")
    assert all(title in parsed.text for title in titles)
    areas = parsed.all("div", "area")
    assert len(areas) == 3 * 5
    assert [area["data-unit"] for area in areas[:3]] == ["steps", "network evaluations", "seconds"]
    ends = [float((area["data-x"] or "").split()[1]) for area in areas[:3]]
    assert ends == [200, 200 * 256, pytest.approx(10)]
    assert all(area["role"] == "img" and "ends at" in (area["aria-label"] or "") for area in areas)
    lines = [attributes for tag, attributes in parsed.tags if tag == "polyline" and "data-name" in attributes]
    assert len(lines) == 3 * (3 * 2 + 2 * 1)  # plain noise has no figures of a coupling
    checked = [a for a in parsed.all("input") if a.get("type") == "radio" and "checked" in a]
    assert [a["id"] for a in checked] == ["over-step"]
    assert parsed.text.count("Figures of this chart") == 5
    assert all(image["alt"] for image in parsed.all("img"))
    assert "Grid of samples of paired after 200 steps" in [image["alt"] for image in parsed.all("img")]


def test_points_are_where_the_values_are(make_run: MakeRun) -> None:
    folder = make_run("a", steps=4, lines=[{"step": s, "loss": v} for s, v in ((1, 8), (2, 4), (3, 2), (4, 1))])
    parsed = shown(folder, smoothing=0)
    area = parsed.all("div", "area")[0]
    low, high = map(float, (area["data-y"] or "").split())
    assert area["data-log"] == "1"
    points = next(a["points"] for tag, a in parsed.tags if tag == "polyline") or ""
    found = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [x for x, _ in found] == [250, 500, 750, 1000]
    values = [low * (high / low) ** (1 - y / 300) for _, y in found]
    assert values == pytest.approx([8, 4, 2, 1], rel=1e-2)


@pytest.mark.parametrize(
    ("seconds", "unit", "end"), [(90.0, "seconds", 90), (600.0, "minutes", 10), (36_000.0, "hours", 10)]
)
def test_time_has_a_unit_that_suits_it(make_run: MakeRun, seconds: float, unit: str, end: float) -> None:
    lines = [{"step": step, "loss": 1.0, "seconds": seconds * step / 4} for step in range(1, 5)]
    area = shown(make_run("a", lines=lines, steps=4)).all("div", "area")[2]
    assert area["data-unit"] == unit
    assert float((area["data-x"] or "").split()[1]) == pytest.approx(end)


def test_figures_of_a_coupling(make_run: MakeRun) -> None:
    plain, paired = read(make_run("plain"), "plain"), read(make_run("paired", coupling="knn"), "paired")
    dash = "\u2013"
    assert coupling_rows([plain]) == [["plain", "none", dash, dash, "2", "4", dash, dash]]
    name, coupling, pairing, share, waited, waited_share, reduction, square = coupling_rows([paired])[0]
    # 1.5 ms of a step of 50 ms, 2 ms waited.
    assert (name, coupling, pairing, share, waited, waited_share) == ("paired", "knn", "1.5", "3", "2", "4")
    assert 17 <= float(reduction) <= 18
    assert float(square) == pytest.approx(0.9)


def test_an_unfinished_run_has_its_pairing_but_not_what_is_known_at_the_end(make_run: MakeRun) -> None:
    run = read(make_run("a", coupling="knn", finished=False))
    assert coupling_rows([run])[0][2:6] == ["1.5", "3", "\u2013", "\u2013"]


def test_hardly_anything_is_there(make_run: MakeRun) -> None:
    empty = make_run("empty", lines=(), grids=(), finished=False)
    (empty / "process.json").unlink()
    (empty / "metrics.jsonl").unlink()
    one = make_run("one", steps=1)
    lost = make_run("lost", lines=[{"step": s, "loss": float("nan")} for s in range(1, 9)], finished=False)
    for folders in ((empty,), (one,), (lost,), (empty, one, lost)):
        assert "A title" in shown(*folders).text
    said = shown(empty, lost).text
    assert "no step is logged yet" in said
    assert "8 steps without an update, or with a loss that is no finite number" in said


def test_what_others_wrote_is_text(make_run: MakeRun) -> None:
    evil = "<script>alert('x')</script>&\"'"
    folder = make_run("a", coupling=evil, extra=[evil], evaluation={"solver": evil, "results": [{evil: evil}]})
    (folder / "process.json").write_text(json.dumps({"data": {"name": evil}}))
    text = page([read(folder, evil)], title=evil, smoothing=0.02)
    assert "<script>alert" not in text
    parsed = Page(text)
    assert len(parsed.all("script")) == 1
    assert evil in parsed.text


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        (
            {"solver": "ddim", "halves": 0.4, "results": [{"nfe": 4, "steps": 4, "frechet_distance": 3.25}]},
            ("frechet distance", "3.25", "halves", "0.4"),
        ),
        (
            {
                "recipe": {"features": {"name": "classifier", "dimension": 16}, "seed": 0},
                "floor": {"kid": {"mean": 0.001}},
                "results": [{"nfe": 10, "kid": {"mean": 0.5, "std": 0.25}, "precision": 0.75}],
            },
            ("kid mean", "kid std", "0.25", "0.75", "recipe features name", "classifier", "data against data", "0.001"),
        ),
    ],
)
def test_evaluations(make_run: MakeRun, evaluation: object, expected: tuple[str, ...]) -> None:
    text = shown(make_run("a", evaluation=evaluation), make_run("b")).text
    for part in ("Measures of samples", "How a was measured", *expected):
        assert part in text


@pytest.mark.parametrize("evaluation", [{}, {"results": 3}, {"results": [3, None]}, {"results": []}, {"x": {}}])
def test_evaluations_without_results(make_run: MakeRun, evaluation: object) -> None:
    assert "Measures of samples" not in shown(make_run("a", evaluation=evaluation)).text


def test_one_run_is_compared_with_the_defaults(make_run: MakeRun) -> None:
    text = shown(make_run("a", learning_rate=1e-3)).text
    assert "Options that are not the default" in text
    assert "learning_rate 0.001" in text
    plain = make_run("b")
    options = json.loads((plain / "options.json").read_text())
    (plain / "options.json").write_text(json.dumps({**options, "max_train_steps": 800}))
    assert "All options are the default." in shown(plain).text


def test_more_runs_than_colours(make_run: MakeRun) -> None:
    parsed = shown(*(make_run(f"run{index}", steps=20, grids=()) for index in range(10)))
    keys = [(a["class"], a.get("stroke-dasharray")) for tag, a in parsed.tags if tag == "line"]
    assert len(set(keys)) == len(keys) == 10


def test_long_runs_make_small_pages(make_run: MakeRun) -> None:
    folder = make_run("a", lines=rows(20_000, coupling="knn"), grids=(), finished=False)
    short = make_run("b", lines=rows(1_000, coupling="knn"), grids=(), finished=False)
    sizes = [len(page([read(path)], title="x", smoothing=0.02)) for path in (folder, short)]
    assert sizes[0] < 1.2 * sizes[1] < 400_000
