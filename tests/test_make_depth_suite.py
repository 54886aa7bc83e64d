"""The suite as files: their layout, the same bytes again, and training on them."""

import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys

import pytest

from keel_jax import errors, make_depth_suite, train
from keel_jax.data import shards, tokenizer
from keel_jax.data.preparing import options as preparation_options
from keel_jax.data.preparing import preparation
from keel_jax.depth_suite import generation, options, registry
from keel_jax.runtime import exit_codes, files
from keel_jax.training import logs
from tests import conftest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = options.SuiteOptions(
    tasks=("modular_chain", "variables"), difficulties=(1, 3), num_train=60, num_test=25, seed=4
)


def _rows(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _bytes(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    output = tmp_path_factory.mktemp("suites") / "small"
    return output, make_depth_suite.write(SMALL, output)


def test_a_test_file_holds_the_examples_of_each_difficulty(small):
    output, _ = small
    rows = _rows(output / "test/variables.jsonl")
    assert [tuple(row) for row in rows] == [
        ("task", "difficulty", "prompt", "answer", "choices")
    ] * 50
    for difficulty in (1, 3):
        expected = generation.examples("variables", difficulty, "test", 4, 25)
        found = [row for row in rows if row["difficulty"] == difficulty]
        assert [(row["prompt"], row["answer"], tuple(row["choices"])) for row in found] == [
            (each.prompt, each.answer, each.choices) for each in expected
        ]


def test_a_training_file_holds_texts_of_the_difficulties_in_turn(small):
    output, _ = small
    rows = _rows(output / "train/variables.jsonl")
    texts = {
        difficulty: [
            each.text for each in generation.examples("variables", difficulty, "train", 4, 60)
        ]
        for difficulty in (1, 3)
    }
    assert [row["text"] for row in rows[0::2]] == texts[1]
    assert [row["text"] for row in rows[1::2]] == texts[3]
    assert all(list(row) == ["text"] for row in rows)


def test_the_index_says_what_was_written_and_by_what(small):
    output, index = small
    assert files.read_json(output / "index.json", needs_checksum=True) == index
    assert set(index["files"]) == {
        f"{split}/{name}.jsonl" for split in ("test", "train") for name in SMALL.tasks
    }
    for name, entry in index["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == entry["sha256"]
        assert entry["num_records"] == len(_rows(output / name))
    assert index["files"]["train/modular_chain.jsonl"]["num_examples"] == {"1": 57, "3": 60}
    # There are fewer chains of one operation in the test than were asked for.
    assert index["files"]["test/modular_chain.jsonl"]["num_examples"] == {"1": 20, "3": 25}
    assert "test/modular_chain.jsonl: 45 examples (there are only 20 at 1)" in (
        make_depth_suite.describe(index)
    )
    assert index["task_properties"]["variables"]["chance"] == {"1": 0.2, "3": 0.2}
    assert (index["seed"], index["version"]) == (4, generation.VERSION)


def test_the_same_arguments_give_the_same_bytes_and_repair_what_is_missing(small, tmp_path):
    output, _ = small
    before = _bytes(output)
    (output / "test/variables.jsonl").unlink()
    (output / "index.json").unlink()  # as after a run that was killed
    make_depth_suite.write(SMALL, output)
    assert _bytes(output) == before
    make_depth_suite.write(SMALL, tmp_path / "other")
    assert list(_bytes(tmp_path / "other").values()) == list(before.values())


def test_another_suite_and_other_files_are_not_overwritten(small, tmp_path):
    output, _ = small
    before = _bytes(output)
    other = options.SuiteOptions(**{**vars(SMALL), "seed": 5})
    with pytest.raises(errors.UserError, match="another suite, with seed=4, not 5: give another"):
        make_depth_suite.write(other, output)
    assert _bytes(output) == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.UserError, match=r"holds files that are of no suite \(notes.txt\)"):
        make_depth_suite.write(SMALL, tmp_path)
    (output / "suite.json").write_text((output / "suite.json").read_text().replace("4", "5"))
    with pytest.raises(errors.UserError, match="suite.json has changed since it was written"):
        make_depth_suite.write(other, output)
    (output / "suite.json").write_bytes(before[str(output / "suite.json")])


def test_several_examples_make_a_document_and_none_is_lost(tmp_path):
    chosen = options.SuiteOptions(
        tasks=("recall",), difficulties=(1, 2), num_train=10, num_test=0, examples_per_document=4
    )
    index = make_depth_suite.write(chosen, tmp_path / "suite")
    rows = _rows(tmp_path / "suite/train/recall.jsonl")
    lines = [row["text"].split("\n") for row in rows]
    assert [len(each) for each in lines] == [4, 4, 4, 4, 2, 2]
    assert index["files"]["train/recall.jsonl"]["num_examples"] == {"1": 10, "2": 10}
    assert not (tmp_path / "suite/test").exists()
    expected = [each.text for each in generation.examples("recall", 2, "train", 0, 10)]
    assert sum(lines[1::2], []) == expected


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(tasks=("variable",)), "task='variable' is not known. Did you mean 'variables'"),
        (dict(tasks=()), "tasks is empty"),
        (dict(difficulties=(2, 2)), "difficulties=2,2 names one of them twice"),
        (dict(difficulties=(0,)), "The difficulty of modular_chain=0 must be at least 1"),
        (dict(num_train=-1), "num_train=-1 must be at least 0"),
        (dict(num_train=0, num_test=0), "both 0: there is nothing to write"),
        (dict(seed=-1), r"seed=-1 must lie in"),
        (dict(examples_per_document=0), "examples_per_document=0 must be at least 1"),
        (dict(examples_per_document=2, answers_only=True), "leave out one of the two"),
    ],
)
def test_wrong_options_are_errors(changed, message):
    with pytest.raises(errors.UserError, match=message):
        options.SuiteOptions(**{**vars(SMALL), **changed})


def test_the_command_writes_what_its_flags_say(small, tmp_path):
    output, _ = small
    command = [sys.executable, "-m", "keel_jax.make_depth_suite", f"--output={tmp_path / 'suite'}"]
    flags = ["--tasks=modular_chain,variables", "--difficulties=1,3", "--num_train=60"]
    flags += ["--num_test=25", "--seed=4"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == exit_codes.DONE, done.stderr
    assert list(_bytes(tmp_path / "suite").values()) == list(_bytes(output).values())
    assert "4 files, version 1, seed 4" in done.stdout
    done = subprocess.run(
        [*command, "--difficulties=1,x"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == exit_codes.ERROR
    assert "--difficulties: 'x' is not a whole number" in done.stderr


def _prepare(chosen: options.SuiteOptions, tokens: pathlib.Path, directory: pathlib.Path):
    """The split of a token set of a suite's training text, with the tokenizer of `tokens`."""
    make_depth_suite.write(chosen, directory / "suite")
    preparation.prepare_token_set(
        [str(directory / "suite/train/*.jsonl")],
        str(directory / "tokens"),
        preparation_options.PreparationOptions(
            tokenizer_model=str(tokens / shards.TOKENIZER_FILE), validation_fraction=0
        ),
    )
    return shards.open_set(directory / "tokens").split("train")


def _documents(split: shards.TokenSplit, directory: pathlib.Path) -> list[tuple[str, float]]:
    """(text, sum of its loss weights and its end's) of the documents of a split."""
    ids = split.tokens(0, split.num_tokens).tolist()
    weights = split.loss_weights(0, split.num_tokens).tolist()
    decoder = tokenizer.Tokenizer.load(directory / shards.TOKENIZER_FILE)
    ends = [place for place, token in enumerate(ids) if token == decoder.eos_id]
    return [
        (decoder.decode(ids[begin + 1 : end]), sum(weights[begin + 1 : end + 1]))
        for begin, end in itertools.pairwise(ends)
    ]


def test_a_run_trains_on_the_suite_mixed_with_text(token_dir, cache_dir, tmp_path):
    """From the files through `prepare` to the steps of a run."""
    split = _prepare(SMALL, token_dir, tmp_path)
    expected = [
        row["text"] for name in SMALL.tasks for row in _rows(tmp_path / f"suite/train/{name}.jsonl")
    ]
    found = _documents(split, tmp_path / "tokens")
    assert sorted(text for text, _ in found) == sorted(expected)
    cfg = conftest.tiny_config(
        model=dict(num_blocks=2, vocab_size=0),
        data=dict(path=f"{token_dir},{tmp_path / 'tokens'}", weights=(0.5, 0.5)),
        train=dict(num_steps=3, eval_num_batches=0, seq_len=64),
        runtime=dict(compilation_cache_dir=cache_dir),
    )
    train.train(cfg, tmp_path / "run")
    rows = [row for row in logs.read(tmp_path / "run") if "tokens" in row]
    assert len(rows) == 3 and all(0 < row["train/loss_nats_per_token"] < 8 for row in rows)


def test_only_answers_have_a_loss_if_so_asked(token_dir, tmp_path):
    chosen = options.SuiteOptions(**{**vars(SMALL), "answers_only": True})
    split = _prepare(chosen, token_dir, tmp_path)
    encoder = tokenizer.Tokenizer.load(tmp_path / "tokens" / shards.TOKENIZER_FILE)
    expected = [
        (row["prompt"] + row["response"], len(encoder.encode(row["response"])) + 1.0)
        for name in SMALL.tasks
        for row in _rows(tmp_path / f"suite/train/{name}.jsonl")
    ]
    assert sorted(_documents(split, tmp_path / "tokens")) == sorted(expected)


def test_the_documentation_shows_real_examples_and_what_tasks_declare():
    text = (ROOT / "docs/depth_suite.md").read_text()
    for name, task in registry.TASKS.items():
        row = f"| `{name}` | {task.asks} | {task.dial} | {task.chance_text} | {task.serial_depth} |"
        assert row in text, row
        [each] = generation.examples(name, 3, "train", 0, 1)
        assert f"`{name}`:\n\n```\n{each.text}\n```\n" in text, each.text
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(registry.TASKS)
