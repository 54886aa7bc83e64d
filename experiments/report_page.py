"""The HTML page of `experiments.report`: notes, verdicts, figures, and what was not run."""

import base64
import datetime
import html
import json
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence

import markdown_it

import keel_jax
from experiments import claims as claims_lib
from experiments import result_sets as result_sets_lib

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

# How each verdict on a claim is coloured.
_MARKS = {
    claims_lib.SUPPORTS: "good",
    claims_lib.CONTRADICTS: "bad",
    claims_lib.UNDECIDED: "soft",
    claims_lib.NOT_RUN: "soft",
}


def page(
    result_sets: Sequence[result_sets_lib.ResultSet],
    presets: Mapping[str, Collection[str]],
    claims: Sequence[claims_lib.Claim] = (),
    root: pathlib.Path = result_sets_lib.EXPERIMENTS,
) -> str:
    """The whole page.

    Args:
      claims: what it begins with, beside what was found.
      presets: the sizes of each experiment that can be run, whether there are results or not.
      root: directory of the experiments, which holds NAME/NOTES.md.
    """
    names = sorted({*presets, *(each.key[0] for each in result_sets)})
    parts = [
        "<h1>keel_jax: the experiments</h1>",
        f'<p class="soft">Made {datetime.date.today()} by keel_jax '
        f"{_text(keel_jax.__version__)}, "
        f"from {len(result_sets)} results. Depth is counted in sub-layers, L = 2N: one residual "
        "connection each.</p>",
        "<nav>"
        + "".join(f'<a href="#{_text(n)}">{_text(n)}</a>' for n in names)
        + '<a href="#not-run">what was not run</a></nav>',
        "<h2>What was claimed, and what we find</h2>",
        _claims(claims, result_sets),
        "<h2>What was run</h2>",
        _overview(result_sets),
    ]
    for name in names:
        own = [each for each in result_sets if each.key[0] == name]
        parts.append(_experiment(name, own, root / name / "NOTES.md"))
    parts += [
        '<h2 id="not-run">What was not run</h2>',
        _table(("experiment", "preset", "missing"), result_sets_lib.not_run(result_sets, presets)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>keel_jax: the experiments</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _claims(
    claims: Sequence[claims_lib.Claim], result_sets: Sequence[result_sets_lib.ResultSet]
) -> str:
    """A table with the claims, each with one row for each piece of evidence."""
    heads = ("claim", "the paper", "at what size", "what we find", "how sure", "so it")
    rows = []
    for claim in claims:
        found = claims_lib.findings(claim, result_sets)
        for number, finding in enumerate(found):
            evidence = finding.evidence
            cells = [
                f'<td rowspan="{len(found)}">{cell}</td>'
                for cell in (
                    f'{_text(claim.text)}<br><span class="soft">{_text(claim.quantity)}</span>',
                    _text(claim.paper),
                )
            ]
            mark = _MARKS[finding.verdict]
            rows.append(
                "<tr>"
                + "".join(cells if number == 0 else ())
                + f'<td>{_text(evidence.size)}<br><span class="soft">{_text(evidence.experiment)}, '
                f"{_text(evidence.preset)}</span></td>"
                f"<td>{_middle(finding)}</td><td>{_text(_interval(finding))}</td>"
                f'<td><span class="{mark}">{_text(finding.verdict)}</span></td></tr>'
            )
    if not rows:
        return "<p>None.</p>"
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _middle(finding: claims_lib.Finding) -> str:
    if finding.verdict == claims_lib.NOT_RUN:
        return "-"
    return "beyond the grid" if finding.middle is None else f"{finding.middle:.4g}"


def _interval(finding: claims_lib.Finding) -> str:
    """As in "95 %: 0.16 to 0.48, 3 seeds"."""
    if finding.verdict == claims_lib.NOT_RUN:
        return "-"
    low, high = ("?" if x is None else f"{x:.4g}" for x in (finding.low, finding.high))
    kind = "95 %" if finding.is_confidence else "range"
    return f"{kind}: {low} to {high}, {finding.num_seeds} seeds"


def _overview(result_sets: Sequence[result_sets_lib.ResultSet]) -> str:
    """A table with one row for each set of results."""
    rows = []
    for each in result_sets:
        values = each.values
        hardware = values["hardware"]
        device = f"{hardware.get('count', '?')} x {hardware.get('kind', '?')}"
        if hardware.get("cpu"):
            device += f"; {hardware.get('host_cpus', '?')} cores of {hardware['cpu']}"
        # The hardware above is that of the analysis; the runs may have been made elsewhere.
        ran_on = set(values.get("runs", {}).get("devices", ())) - {device.split(";")[0]}
        if ran_on:
            device += f"; runs on {', '.join(sorted(ran_on))}"
        packages = values["versions"]
        rows.append(
            (
                *each.key,
                len(values["points"]),
                ", ".join(map(str, each.seeds)) or "-",
                f"{values['seconds'] / 60:.1f}",
                device,
                each.corpus,
                f"jax {packages.get('jax', '?')}, Python {packages.get('python', '?')}",
                each.source,
            )
        )
    heads = (
        *("experiment", "preset", "points", "seeds", "minutes", "hardware"),
        *("corpus", "versions", "commit"),
    )
    corpora = {each.corpus for each in result_sets} - {"none recorded"}
    warning = (
        f"<p>These results are of {len(corpora)} corpora or vocabularies. Losses in nats a token "
        "can be compared only between results of one corpus and vocabulary.</p>"
    )
    return _table(heads, rows) + (warning if len(corpora) > 1 else "")


def _experiment(
    name: str, result_sets: Sequence[result_sets_lib.ResultSet], notes_file: pathlib.Path
) -> str:
    """The experiment's notes, then each preset's verdicts and figures."""
    parts = [f'<h2 id="{_text(name)}">{_text(name)}</h2>']
    if notes_file.exists():
        parts.append(_markdown(notes_file.read_text()))
    if not result_sets:
        parts.append('<p class="bad">No results.</p>')
    for each in result_sets:
        values = each.values
        parts.append(f"<h3>{_text(name)}, {_text(each.key[1])}</h3>")
        parts.append(f"<p><code>{_text(values['command'])}</code></p>")
        parts.append(_checks(values["numbers"].get("checks")))
        parts += [_figure(path) for path in sorted((each.directory / "figures").glob("*.svg"))]
        numbers = json.dumps(values["numbers"], indent=1, ensure_ascii=False)
        versions = json.dumps(values["versions"] | {"hardware": values["hardware"]}, indent=1)
        parts.append(_details("all numbers", numbers) + _details("versions, hardware", versions))
    return "\n".join(parts)


def _checks(checks: Mapping[str, Mapping] | None) -> str:
    """A table of the predictions and whether they hold, if the experiment has any."""
    if not checks:
        return ""
    rows = []
    for key, check in checks.items():
        others = {name: value for name, value in check.items() if name != "holds"}
        values = ", ".join(f"{name} {_short(value)}" for name, value in others.items())
        if check["holds"]:
            mark = '<span class="good">holds</span>'
        elif check.get("verdict") == "undecided":
            mark = '<span class="soft">undecided</span>'
        else:
            mark = '<span class="bad">does not hold</span>'
        rows.append(f"<tr><td>{_text(key)}</td><td>{mark}</td><td>{_text(values)}</td></tr>")
    return "<table><tr><th>prediction</th><th></th><th>found</th></tr>" + "".join(rows) + "</table>"


def _figure(path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = _text(path.stem.replace("_", " "))
    return (
        f'<figure><img alt="{name}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def _markdown(text: str) -> str:
    """The notes as HTML, with headings two levels down, and links into the repository as text."""
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


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _text(value: object) -> str:
    return html.escape(str(value))
