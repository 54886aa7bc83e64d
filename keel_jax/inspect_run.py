"""One page of per-layer plots of a run: `python -m keel_jax.inspect_run --workdir=DIR`.

The page is self-contained: its images are embedded. docs/telemetry.md says how to read it.
"""

import base64
import html

from absl import flags
from etils import epath

from keel_jax import config, errors
from keel_jax.model import lm
from keel_jax.runtime import best_effort, cli, exit_codes, files, result_file
from keel_jax.training import checkpoint, divergence, logs, plots, telemetry_records, trained
from keel_jax.training import status as status_lib

_CURVES = {
    "train/loss_nats_per_token": "loss [nats/token]",
    "train/grad_norm": "gradient norm (before clipping)",
    "train/learning_rate": "learning rate",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em }
img { max-width: 100%; display: block; margin: .3em 0 }
td, th { text-align: left; padding: .1em 1.5em .1em 0; font-weight: normal; color: #555 }
td { color: #000 }
pre { background: #fdecea; border-left: 4px solid #c0392b; padding: .8em 1em; overflow-x: auto }
h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
"""


def page(workdir: epath.PathLike) -> str:
    """The HTML page of the run, or the trial, in `workdir`.

    Raises:
      UserError: there is no run, it has several trials, or nothing was recorded; the message
        says what to do.
    """
    workdir = epath.Path(workdir)
    cfg = trained.load_trial_config(workdir)
    if cfg.num_trials > 1:
        raise errors.UserError(
            f"{workdir} holds {cfg.num_trials} trials; name one of them: {workdir}/trials/000 …"
        )
    records = telemetry_records.load(workdir)
    if not records:
        every = cfg.telemetry.every_steps
        raise errors.UserError(
            f"{workdir / telemetry_records.DIRECTORY} holds no record that can be read: the first "
            "is that of step 1."
            if every
            else f"{workdir} holds no telemetry: the run had telemetry.every_steps=0. Train with "
            "--config.telemetry.every_steps=100 (a started run can be continued with this option)."
        )
    if (num_blocks := divergence.num_blocks(records)) != cfg.model.num_blocks:
        raise errors.UserError(
            f"{workdir / telemetry_records.DIRECTORY} holds records of {num_blocks} blocks, but "
            f"the model of {workdir} has {cfg.model.num_blocks}: put the run's own files back."
        )
    status = _status(workdir, cfg)
    parts = [
        f"<h1>{_text(workdir.name)}: {_text(cfg.model.topology)}, "
        f"{cfg.model.num_sublayers} sub-layers</h1>",
        _head(status, cfg, records),
    ]
    if text := _divergence(workdir, cfg, status):
        parts.append(f"<h2>Divergence</h2><pre>{_text(text)}</pre>")
    rows = logs.read(workdir)
    if not rows:
        best_effort.warn(f"{workdir / logs.JSONL} holds no row: the page has no curves.")
    elif logs.is_unfinished(workdir):
        best_effort.warn(
            f"{workdir / logs.JSONL} ends within a row, which is being written or was cut off: "
            "left out."
        )
    parts.append("<h2>Curves</h2>")
    parts.append(_image("curves", plots.curves(rows, list(_CURVES), list(_CURVES.values()))))
    for family in plots.families(records):
        parts.append(f"<h2>{_text(plots.FAMILIES[family].title)}</h2>")
        parts.append(_image(f"{family}: heat map", plots.heat_map(records, family)))
        parts.append(_image(f"{family}: profile", plots.profile(records, family)))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(workdir.name)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _status(workdir: epath.Path, cfg: config.Config) -> dict:
    """The content of status.json; if it is not of a run of this model, a warning and {}."""
    path = workdir / status_lib.FILE
    status = best_effort.read_object(path)
    model = cfg.model.topology, cfg.model.num_blocks
    if "state" not in status:
        best_effort.warn(f"{path} does not say what became of the run: the page does not, either.")
    elif (status.get("topology"), status.get("num_blocks")) != model:
        best_effort.warn(f"{path} is that of another model: it is left out.")
    else:
        return status
    return {}


def _divergence(workdir: epath.Path, cfg: config.Config, status: dict) -> str:
    """The report of a run that diverged; a warning names what is missing."""
    path = workdir / telemetry_records.DIVERGENCE
    report = best_effort.read_object(path)
    if report.get("num_blocks", cfg.model.num_blocks) != cfg.model.num_blocks:
        best_effort.warn(f"{path} is that of another model: it is left out.")
    elif "text" in report:
        return report["text"]
    elif path.exists() or status.get("state") == exit_codes.STATES[exit_codes.DIVERGED]:
        best_effort.warn(f"{path} holds no report: the page does not explain the divergence.")
    return ""


def _head(status: dict, cfg: config.Config, records) -> str:
    """A table that describes the run."""
    m, steps = cfg.model, records["step"]
    lines = {
        "topology": f"{m.topology}, N = {m.num_blocks} blocks, L = {m.num_sublayers} sub-layers",
        "α": status.get("alpha", "not known"),
        "size": f"width {m.d_model}, FFN {m.d_ffn}, {lm.count_params(m):,} parameters",
        "optimizer": f"{cfg.optim.name}, peak LR {cfg.optim.peak_lr:g}, {cfg.optim.schedule}, "
        f"{cfg.optim.warmup_steps} warm-up steps, seed {cfg.seed}",
        "batch": f"{cfg.train.batch_size} x {cfg.train.seq_len} tokens",
        "state": f"{status.get('state', 'not known')}, step {status.get('step', '?')} of "
        f"{cfg.train.num_steps}",
        "records": f"{len(steps)}, of steps {steps[0]} to {steps[-1]}",
    }
    rows = "".join(f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in lines.items())
    return f"<table>{rows}</table>"


def _image(name: str, canvas) -> str:
    data = base64.b64encode(plots.png(canvas)).decode()
    return f'<img alt="{_text(name)}" src="data:image/png;base64,{data}">'


def _text(value) -> str:
    return html.escape(str(value))


def main(_: list[str]) -> None:
    workdir = epath.Path(_WORKDIR.value)
    output = epath.Path(_OUTPUT.value or workdir / "telemetry.html")
    checkpoint.load_config(workdir)  # no directory is made for the page of no run
    result_file.check("--output", output)
    files.write_bytes(output, page(workdir).encode())
    print(f"{output}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string(
        "workdir", None, "Of a run, or of one of its trials.", required=True
    )
    _OUTPUT = flags.DEFINE_string("output", None, "HTML file; default: DIR/telemetry.html.")
    cli.run(main)
