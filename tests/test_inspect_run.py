"""From a run to its page: records, images, the divergence report, and what a restart keeps."""

import dataclasses
import html.parser
import inspect as pythons
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from keel_jax import config, errors, inspect_run, train
from keel_jax.parallel import mesh as mesh_lib
from keel_jax.runtime import exit_codes, files
from keel_jax.training import plots, telemetry_records, trained, trials
from tests import conftest

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 6
# Those that any plan of recomputation has.
_FAMILIES = set(plots.FAMILIES) - set(plots.REVERSIBLE)


def _config(token_dir, cache_dir, **sections):
    sections["model"] = {"vocab_size": 0, "num_blocks": 2}
    sections["data"] = {"path": str(token_dir)}
    sections["train"] = {
        "num_steps": NUM_STEPS,
        "checkpoint_every_steps": 1,
        "keep_checkpoints": NUM_STEPS,
        "eval_num_batches": 1,
    }
    sections["runtime"] = {"compilation_cache_dir": cache_dir}
    return conftest.tiny_config(**{"telemetry": dict(every_steps=4), **sections})


@pytest.fixture(scope="module")
def run(token_dir, cache_dir, tmp_path_factory):
    """A run that did well, beside a trial of it that did not."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = _config(token_dir, cache_dir, trials=dict(peak_lr=(1e-2, 1e30)))
    assert train.train(cfg, workdir) == exit_codes.DONE
    return cfg, workdir


def test_a_diverging_step_is_recorded_and_explained(run):
    """Also between two records; the trial that did well goes on."""
    _, workdir = run
    good, bad = workdir / "trials/000", workdir / "trials/001"
    assert telemetry_records.load(good)["step"].tolist() == [1, 4, NUM_STEPS]
    assert not (good / telemetry_records.DIVERGENCE).exists()
    report = files.read_json(bad / telemetry_records.DIVERGENCE)
    assert files.read_json(bad / "status.json")["state"] == "diverged"
    steps = telemetry_records.load(bad)["step"].tolist()
    # The warm-up's first rate is 0, its second makes weights of 1e29: the third step fails.
    assert steps == [1, 3] and report["step"] == 3
    # The weights of block 0 are the first to be read.
    assert (report["forward"]["block"], report["forward"]["sublayer"]) == (0, "attention")
    assert report["forward"]["message"].endswith(
        "handed on by the embedding (0.0196 in the record before)"
    )
    assert not (report["loss_is_finite"] and report["grad_norm_is_finite"])
    assert report["backward"]["block"] == 1
    # From 0.02 to infinity at once.
    assert report["grew"] == [] and "No number that is still finite has grown." in report["text"]


def test_tensorboard_shows_one_heat_map_and_one_profile_of_each_statistic(run):
    _, workdir = run
    events = event_accumulator.EventAccumulator(str(workdir / "trials/000/tensorboard")).Reload()
    tags = {f"depth/{family}/{kind}" for family in _FAMILIES for kind in ("heat_map", "profile")}
    assert set(events.Tags()["images"]) == tags
    for tag in tags:
        [image] = events.Images(tag)
        assert image.step == NUM_STEPS
        content = image.encoded_image_string
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert np.frombuffer(content[16:24], ">u4").tolist() == [image.width, image.height]


def test_a_restart_keeps_the_records_up_to_its_checkpoint(run, tmp_path, monkeypatch):
    """Bitwise those of the run never stopped; the dead trial's report stays, or is made again."""
    monkeypatch.setattr(
        telemetry_records.Recorder, "draw", lambda self: None
    )  # slow, and tested above
    cfg, workdir = run
    whole = [telemetry_records.load(workdir / "trials" / trial) for trial in ("000", "001")]
    for last_step in (4, 2):
        copy = tmp_path / str(last_step)
        shutil.copytree(workdir, copy)
        for step in range(last_step + 1, NUM_STEPS + 1):
            shutil.rmtree(copy / "checkpoints" / str(step))
        assert train.train(cfg, copy) == exit_codes.DONE
        assert files.read_json(copy / "status.json")["compilations"]["new"] == 0
        for trial, records in zip(("000", "001"), whole, strict=True):
            again = telemetry_records.load(copy / "trials" / trial)
            assert set(again) == set(records)
            for name, values in records.items():
                np.testing.assert_array_equal(again[name], values, err_msg=name)
        reports = [
            files.read_json(root / "trials/001" / telemetry_records.DIVERGENCE)
            for root in (workdir, copy)
        ]
        assert reports[0] == reports[1]


def test_to_watch_a_run_changes_nothing(run, tmp_path):
    """Weights and optimizer, bit by bit; switched off, there is neither record nor report."""
    cfg, workdir = run
    blind = dataclasses.replace(cfg, telemetry=dataclasses.replace(cfg.telemetry, every_steps=0))
    assert train.train(blind, tmp_path) == exit_codes.DONE
    for trial in ("trials/000", "trials/001"):
        assert telemetry_records.load(tmp_path / trial) == {}
        assert not (tmp_path / trial / telemetry_records.DIVERGENCE).exists()
        mesh = mesh_lib.make(cfg.for_trial(0).mesh, jax.devices()[:1])
        one, other = (trained.load_params(root / trial, mesh)[0] for root in (tmp_path, workdir))
        jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(ValueError, match=r"--config.telemetry.every_steps=100"):
        inspect_run.page(tmp_path / "trials/000")


class _Page(html.parser.HTMLParser):
    """Collects images and text, and fails on what is not closed."""

    def __init__(self, content: str):
        super().__init__()
        self.images, self.text, self._open = {}, "", []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images[dict(attrs)["alt"]] = dict(attrs)["src"]
        elif tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_complete_and_needs_nothing_else(run):
    _, workdir = run
    report = files.read_json(workdir / "trials/001" / telemetry_records.DIVERGENCE)
    pages = [_Page(inspect_run.page(workdir / "trials" / trial)) for trial in ("000", "001")]
    for page in pages:
        names = {f"{family}: {kind}" for family in _FAMILIES for kind in ("heat map", "profile")}
        assert set(page.images) == names | {"curves"}
        assert all(src.startswith("data:image/png;base64,iVBOR") for src in page.images.values())
        assert "N = 2 blocks, L = 4 sub-layers" in page.text
    assert "peak LR 0.01" in pages[0].text and "Divergence" not in pages[0].text
    assert report["text"] in pages[1].text


def test_trials_are_asked_for_by_name(run):
    with pytest.raises(ValueError, match="holds 2 trials; name one of them: .*trials/000"):
        inspect_run.page(run[1])


def test_the_verb_writes_the_page_and_hides_no_module_of_pythons(run, tmp_path):
    _, workdir = run
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "keel_jax.inspect_run",
            f"--workdir={workdir / 'trials/000'}",
            f"--output={tmp_path / 'page.html'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert pythons.__file__ != inspect_run.__file__


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a work directory of a run"):
        inspect_run.page(tmp_path)


def test_files_of_another_run_are_no_page(run, tmp_path, capsys):
    shutil.copytree(run[1], tmp_path / "run")
    workdir = tmp_path / "run/trials/000"
    log = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(log[:-5])
    (workdir / "divergence.json").write_text("{}")
    inspect_run.page(workdir)
    said = capsys.readouterr().err
    assert f"{workdir}/metrics.jsonl ends within a row" in said
    assert f"{workdir}/divergence.json holds no report" in said
    (workdir / "metrics.jsonl").unlink()
    status = files.read_json(workdir / "status.json")
    files.write_checked_json(workdir / "status.json", status | {"num_blocks": 99})
    assert "<h2>Curves</h2>" in inspect_run.page(workdir)
    said = capsys.readouterr().err
    assert f"{workdir}/metrics.jsonl holds no row" in said
    assert f"{workdir}/status.json is that of another model" in said
    (workdir / "status.json").write_text('{"step": null}')
    assert "not known" in inspect_run.page(workdir)
    assert f"{workdir}/status.json does not say what became" in capsys.readouterr().err
    (workdir / "divergence.json").write_text('{"num_blocks": 99, "text": "It diverged."}')
    assert "It diverged." not in inspect_run.page(workdir)
    assert f"{workdir}/divergence.json is that of another model" in capsys.readouterr().err
    for path in (tmp_path / "run/config.json", workdir / "config.json"):
        values = files.read_json(path)
        values["model"]["num_blocks"] += 1
        files.write_checked_json(path, values)
    with pytest.raises(
        errors.UserError, match="holds records of . blocks, but the model of .* has"
    ):
        inspect_run.page(workdir)


def test_the_config_of_another_runs_trial_is_refused(tmp_path):
    cfg = conftest.tiny_config(trials=dict(peak_lr=(1e-2, 1e-3)))
    (tmp_path / "trials/001").mkdir(parents=True)
    files.write_checked_json(tmp_path / "config.json", config.to_dict(cfg))
    trials.write_pointer(tmp_path / "trials/001", 1)
    own = config.to_dict(cfg.for_trial(1))
    files.write_checked_json(tmp_path / "trials/001/config.json", own)
    assert trained.load_trial_config(tmp_path / "trials/001") == cfg.for_trial(1)
    own["model"]["d_ffn"] += 1
    files.write_checked_json(tmp_path / "trials/001/config.json", own)
    with pytest.raises(
        errors.UserError, match=f"001/config.json is not that of trial 1 of .*{tmp_path}"
    ):
        inspect_run.page(tmp_path / "trials/001")
