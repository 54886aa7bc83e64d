"""One HTML page of all results: `python -m experiments.report --out=DIR`.

It reads the committed results, experiments/NAME/results/PRESET, and directories of one's own given
as --results (of which one that holds the same experiment and preset takes the committed one's
place). The page needs nothing but itself: figures are in it. What has not been run stands at its
end, as plainly as what has.
"""

import base64
import dataclasses
import datetime
import html
import json
import pathlib
import re
from collections.abc import Sequence

import markdown_it
from absl import flags

import keel_jax
from experiments.sweeps import results
from keel_jax import errors
from keel_jax.runtime import cli, files

EXPERIMENTS = pathlib.Path(__file__).parent
PRESETS = ("micro", "small", "paper")
FILE = "report.html"
_STYLE = """
:root { --ink: #1c2128; --soft: #5c6670; --line: #d9dee3; --paper: #fff; --tint: #f5f7f9;
  --good: #1a7f4b; --bad: #b3362b }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 2.5em auto; padding: 0 1.2em }
h1 { font-size: 1.9em; margin-bottom: .2em }
h2 { margin-top: 2.6em; padding-bottom: .25em; border-bottom: 2px solid var(--line) }
h3 { margin-top: 1.8em } h4 { margin: 1.4em 0 .3em }
a { color: #0b5cad } nav a { margin-right: 1.2em; white-space: nowrap }
.soft { color: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { text-align: left; padding: .3em .9em .3em 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { font-weight: 600 }
code { font-size: .88em; background: var(--tint); padding: .1em .3em; border-radius: 3px }
pre { background: var(--tint); padding: .8em 1em; overflow-x: auto; border-radius: 4px }
pre code { padding: 0; background: none }
figure { margin: 1.2em 0; display: inline-block; max-width: 100% }
figure img { max-width: 100% } figcaption { color: var(--soft); font-size: .9em }
details { margin: 1em 0 } summary { cursor: pointer; color: var(--soft) }
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """One experiment at one preset."""

    directory: pathlib.Path
    # results.json.
    values: dict

    @property
    def key(self) -> tuple[str, str]:
        return self.values["experiment"], self.values["preset"]

    @property
    def seeds(self) -> list:
        return sorted({point["seed"] for point in self.values["points"] if "seed" in point})

    @property
    def missing(self) -> list[str]:
        """Points that failed, by their names."""
        return list(self.values["numbers"].get("missing", []))

    @property
    def source(self) -> str:
        """The commit that made it, and whether the tree was clean."""
        commit = (self.values["commit"] or "not known")[:12]
        return commit if self.values["is_clean"] else f"{commit}, changed"


def gather(given: Sequence[pathlib.Path], root: pathlib.Path = EXPERIMENTS) -> list[Found]:
    """The committed results and those under the given directories, by experiment and preset.

    Raises:
      UserError: a given directory holds none.
    """
    found = {}
    committed = sorted(root.glob(f"*/results/*/{results.FILE}"))
    for path in committed:
        one = Found(path.parent, results.read(path.parent))
        found[one.key] = one
    for directory in given:
        paths = sorted(directory.rglob(results.FILE))
        if not paths:
            raise errors.UserError(
                f"--results={directory}: there is no {results.FILE} in or below it."
            )
        for path in paths:
            one = Found(path.parent, results.read(path.parent))
            found[one.key] = one
    order = {preset: place for place, preset in enumerate(PRESETS)}
    return sorted(found.values(), key=lambda f: (f.key[0], order.get(f.key[1], len(order))))


def experiments(root: pathlib.Path = EXPERIMENTS) -> list[str]:
    """Every experiment that can be run."""
    return sorted(path.parent.name for path in root.glob("*/run.py"))


def not_run(found: Sequence[Found], names: Sequence[str]) -> list[tuple[str, str, str]]:
    """(experiment, preset, what is missing) of all that has no result, or not a whole one."""
    there = {one.key: one for one in found}
    rows = []
    for name in names:
        for preset in PRESETS:
            if (name, preset) not in there:
                rows.append((name, preset, "everything"))
    for (name, preset), one in there.items():
        if one.missing:
            told = f"{len(one.missing)} of {len(one.values['points'])} points: "
            rows.append((name, preset, told + ", ".join(one.missing)))
    return sorted(rows, key=lambda row: (row[0], PRESETS.index(row[1]) if row[1] in PRESETS else 9))


# --- The page ------------------------------------------------------------------------------------


def page(found: Sequence[Found], root: pathlib.Path = EXPERIMENTS) -> str:
    """The whole page."""
    names = sorted({*experiments(root), *(one.key[0] for one in found)})
    parts = [
        "<h1>keel_jax: the experiments</h1>",
        f'<p class="soft">Made {datetime.date.today()} by keel_jax '
        f"{_text(keel_jax.__version__)}, "
        f"from {len(found)} results. Depth is counted in sub-layers, L = 2N: one residual "
        "connection each.</p>",
        "<nav>"
        + "".join(f'<a href="#{_text(n)}">{_text(n)}</a>' for n in names)
        + '<a href="#not-run">what was not run</a></nav>',
        "<h2>What was run</h2>",
        _overview(found),
    ]
    for name in names:
        mine = [one for one in found if one.key[0] == name]
        parts.append(_experiment(name, mine, root / name / "NOTES.md"))
    parts += [
        '<h2 id="not-run">What was not run</h2>',
        _table(("experiment", "preset", "missing"), not_run(found, names)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>keel_jax: the experiments</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _overview(found: Sequence[Found]) -> str:
    rows = []
    for one in found:
        values = one.values
        hardware = values["hardware"]
        device = f"{hardware.get('count', '?')} x {hardware.get('kind', '?')}"
        if hardware.get("cpu"):
            device += f"; {hardware.get('host_cpus', '?')} cores of {hardware['cpu']}"
        # What analysed; the runs may have been made elsewhere.
        ran_on = set(values.get("runs", {}).get("devices", ())) - {device.split(";")[0]}
        if ran_on:
            device += f"; runs on {', '.join(sorted(ran_on))}"
        packages = values["versions"]
        rows.append(
            (
                *one.key,
                len(values["points"]),
                ", ".join(map(str, one.seeds)) or "-",
                f"{values['seconds'] / 60:.1f}",
                device,
                f"jax {packages.get('jax', '?')}, Python {packages.get('python', '?')}",
                one.source,
            )
        )
    heads = ("experiment", "preset", "points", "seeds", "minutes", "hardware", "versions", "commit")
    return _table(heads, rows)


def _experiment(name: str, found: Sequence[Found], notes_file: pathlib.Path) -> str:
    """The experiment's notes, then each preset's verdicts and figures."""
    parts = [f'<h2 id="{_text(name)}">{_text(name)}</h2>']
    if notes_file.exists():
        parts.append(_markdown(notes_file.read_text()))
    if not found:
        parts.append('<p class="bad">No results.</p>')
    for one in found:
        parts.append(f"<h3>{_text(name)}, {_text(one.key[1])}</h3>")
        parts.append(f"<p><code>{_text(one.values['command'])}</code></p>")
        parts.append(_checks(one.values["numbers"].get("checks")))
        parts += [_figure(path) for path in sorted((one.directory / "figures").glob("*.svg"))]
        shown = json.dumps(one.values["numbers"], indent=1, ensure_ascii=False)
        versions_of = json.dumps(
            one.values["versions"] | {"hardware": one.values["hardware"]}, indent=1
        )
        parts.append(_details("all numbers", shown) + _details("versions, hardware", versions_of))
    return "\n".join(parts)


def _checks(checks: dict | None) -> str:
    """Predictions, and whether they hold, where an experiment writes them down so."""
    if not checks:
        return ""
    rows = []
    for key, check in checks.items():
        others = {name: value for name, value in check.items() if name != "holds"}
        told = ", ".join(f"{name} {_short(value)}" for name, value in others.items())
        if check["holds"]:
            mark = '<span class="good">holds</span>'
        elif check.get("verdict") == "undecided":
            mark = '<span class="soft">undecided</span>'
        else:
            mark = '<span class="bad">does not hold</span>'
        rows.append(f"<tr><td>{_text(key)}</td><td>{mark}</td><td>{_text(told)}</td></tr>")
    return "<table><tr><th>prediction</th><th></th><th>found</th></tr>" + "".join(rows) + "</table>"


def _figure(path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = _text(path.stem.replace("_", " "))
    return (
        f'<figure><img alt="{name}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _markdown(text: str) -> str:
    """The notes as HTML, headings two levels down; links, which lead into the tree, as text."""
    parser = markdown_it.MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(re.sub(r"\A# .*\n", "", text))
    body = re.sub(r"<(/?)h([1-4])>", lambda m: f"<{m[1]}h{int(m[2]) + 2}>", body)
    return re.sub(r'<a href="(?!https?:)[^"]*">(.*?)</a>', r"\1", body)


def _table(heads: Sequence[str], rows: Sequence[Sequence]) -> str:
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{_text(cell)}</th>" for cell in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_text(content)}</pre></details>"


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _text(value) -> str:
    return html.escape(str(value))


def main(_):
    found = gather([pathlib.Path(path) for path in _RESULTS.value])
    out = files.make_writable_directory(_OUT.value)
    files.write_bytes(out / FILE, page(found).encode())
    print(f"{out / FILE}: {len(found)} results")


if __name__ == "__main__":
    _OUT = flags.DEFINE_string("out", None, f"Directory for {FILE}.", required=True)
    _RESULTS = flags.DEFINE_list(
        "results", [], "Directories with results of one's own, beside the committed ones."
    )
    cli.run(main)
