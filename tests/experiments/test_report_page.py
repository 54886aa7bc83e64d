"""The report: what is in it, that it needs no other file, and that it says what was not run."""

import html.parser
import pathlib
import subprocess
import sys

import pytest

from experiments import registry, report, report_page, result_sets
from experiments.sweeps import figures, results
from keel_jax.runtime import files

ROOT = pathlib.Path(__file__).parents[2]
SIZES = ("micro", "small", "paper")
PRESETS = {"alpha": SIZES, "beta": SIZES}


@pytest.fixture
def world(tmp_path):
    """Two experiments in a tree of their own: one with results of one preset, one without."""
    root = tmp_path / "experiments"
    for name in PRESETS:
        (root / name).mkdir(parents=True)
        (root / name / "NOTES.md").write_text(
            f"# {name}\n\n## Question\n\nIs <{name}> so? See [the code](points.py).\n\n"
            "## Numbers\n\n"
            "| | ours | paper |\n|---|---|---|\n| gain | 0.99 | 0.992 |\n"
        )
    _write(
        root / "alpha/results/micro",
        "alpha",
        "micro",
        {
            "gain": 0.99,
            "missing": ["keel_lr1_seed2"],
            "checks": {
                "it rises": {"value": 2.5, "holds": True},
                "it falls": {"value": 0.12345, "holds": False},
                "it stays": {"verdict": "undecided", "holds": False},
            },
        },
    )
    return root


def _write(directory, experiment, preset, numbers):
    results.write(
        directory,
        experiment,
        preset,
        numbers=numbers,
        seconds=90.0,
        points=[{"seed": 0}, {"seed": 2}],
    )
    canvas, axes = figures.new()
    axes.plot([1, 2])
    figures.save(canvas, directory, "loss_curve", {"x": [1, 2]})


def _page(own, world) -> str:
    return report_page.page(result_sets.gather(own, world), PRESETS, root=world)


class _Page(html.parser.HTMLParser):
    """Collects text, images, links and rows; fails on a tag that is not closed."""

    def __init__(self, content: str):
        super().__init__()
        self.images, self.links, self.ids, self.text = {}, [], set(), ""
        self.rows, self._open = [], []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if tag == "img":
            self.images[attrs["alt"]] = attrs["src"]
        elif tag == "a":
            self.links.append(attrs["href"])
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag not in ("img", "meta", "br", "hr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self._open and self.rows:
            self.rows[-1][-1] += data


def test_the_page_holds_results_notes_and_figures(world):
    page = _Page(_page([], world))
    assert page.images["loss curve"].startswith("data:image/svg+xml;base64,")
    assert "Is <alpha> so?" in page.text and "Is <beta> so?" in page.text
    [overview] = [row for row in page.rows if row[:2] == ["alpha", "micro"] and len(row) == 9]
    assert overview[2:5] == ["2", "0, 2", "1.5"]
    assert ["gain", "0.99", "0.992"] in page.rows
    assert ["it rises", "holds", "value 2.5"] in page.rows
    assert ["it falls", "does not hold", "value 0.1235"] in page.rows
    assert ["it stays", "undecided", 'verdict "undecided"'] in page.rows


def test_results_of_another_corpus_are_told_apart(world, tmp_path):
    def write(name, fingerprint):
        _write(tmp_path / "own" / name, name, "micro", {"gain": 1.0})
        content = results.load(tmp_path / "own" / name)
        content["data"] = {"fingerprint": fingerprint, "corpus": {"package": "sympy 1.14.0"}}
        files.write_json(tmp_path / "own" / name / results.FILE, content)

    write("alpha", "a" * 64)
    write("beta", "a" * 64)
    page = _Page(
        report_page.page(result_sets.gather([tmp_path / "own"], world), PRESETS, root=world)
    )
    assert sum("sympy 1.14.0, tokens aaaaaaaa" in row for row in page.rows) == 2
    assert "can be compared only between" not in page.text
    write("beta", "b" * 64)
    page = _Page(
        report_page.page(result_sets.gather([tmp_path / "own"], world), PRESETS, root=world)
    )
    assert "These results are of 2 corpora" in page.text


def test_it_needs_nothing_else(world):
    text = _page([], world)
    page = _Page(text)
    assert all(src.startswith("data:") for src in page.images.values())
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    for outside in ("<script", "<link", "url(", "@import", "http:"):
        assert outside not in text


def test_what_was_not_run_is_said(world):
    page = _Page(_page([], world))
    last = page.text.split("What was not run")[-1]
    rows = [row for row in page.rows if len(row) == 3]
    for row in (
        ["alpha", "micro", "1 of 2 points: keel_lr1_seed2"],
        ["alpha", "small", "everything"],
        ["beta", "micro", "everything"],
        ["beta", "paper", "everything"],
    ):
        assert row in rows and row[2] in last
    assert ["alpha", "micro", "everything"] not in rows


def test_ones_own_results_take_the_committed_ones_place(world, tmp_path):
    own = tmp_path / "own"
    _write(own / "a", "alpha", "micro", {"gain": 0.5})
    _write(own / "b", "beta", "small", {"gain": 0.7})
    gathered = result_sets.gather([own], world)
    assert [one.key for one in gathered] == [("alpha", "micro"), ("beta", "small")]
    assert gathered[0].values["numbers"] == {"gain": 0.5}
    rows = result_sets.not_run(gathered, PRESETS)
    assert ("beta", "small", "everything") not in rows and len(rows) == 4
    with pytest.raises(ValueError, match="no results.json"):
        result_sets.gather([world / "beta"], world)


def test_a_tree_without_results_gives_a_page_that_says_so(tmp_path):
    (tmp_path / "alpha").mkdir()
    page = _Page(
        report_page.page(result_sets.gather([], tmp_path), {"alpha": SIZES}, root=tmp_path)
    )
    assert "No results." in page.text and ["alpha", "micro", "everything"] in page.rows


def test_the_command_gathers_what_is_committed(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", f"--out={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / report.FILE).read_text()
    page = _Page(text)
    assert set(registry.MODULES) <= page.ids
    committed = list((ROOT / "experiments").glob("*/results/*/results.json"))
    assert f"from {len(committed)} results" in page.text
