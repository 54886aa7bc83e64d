"""Texts end where they should, and are those of the prompt alone, whatever the batch."""

import itertools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

import keel_jax
from keel_jax import config
from keel_jax.inference import generation, requests
from keel_jax.model import sampling
from keel_jax.parallel import mesh as mesh_lib

PROMPTS = ["def f", "", "    return x + 4\n", "x" * 30, "def function_1_2(x):\n", "def f", "1"]
SAMPLED = sampling.Sampling(temperature=1.0, top_p=0.9)


@pytest.fixture
def short_chunks(monkeypatch):
    """So short that stop strings lie across the chunks."""
    monkeypatch.setattr(generation, "_CHUNK", 4)


@pytest.fixture(scope="module")
def free(model):
    """What is written without any stop string."""
    return model.generate_timed(PROMPTS, num_tokens=40)


@pytest.mark.parametrize("how", [None, SAMPLED], ids=["greedy", "sampled"])
def test_a_text_depends_on_its_prompt_its_place_and_the_seed_alone(model, how):
    whole = model.generate(PROMPTS, num_tokens=12, how=how, seed=3)
    assert whole == model.generate(PROMPTS, num_tokens=12, how=how, seed=3, batch_size=3)
    # Other neighbours, shorter and longer, in the same places.
    others = [PROMPTS[0], "y" * 38, PROMPTS[2], "", PROMPTS[4], "", ""]
    texts = model.generate(others, num_tokens=12, how=how, seed=3)
    assert [texts[i] for i in (0, 2, 4)] == [whole[i] for i in (0, 2, 4)]
    # A prompt that is there twice is written on in two ways, unless it is greedily.
    assert (whole[0] == whole[5]) == (how is None)
    assert (whole == model.generate(PROMPTS, num_tokens=12, how=how, seed=4)) == (how is None)
    shorter = model.generate(PROMPTS, num_tokens=5, how=how, seed=3)
    assert all(text.startswith(start[:3]) for text, start in zip(whole, shorter, strict=True))


def test_a_part_of_some_prompts_is_written_on_as_all_of_them(model):
    """If each brings its number."""
    whole = model.generate_timed(PROMPTS, num_tokens=12, how=SAMPLED, seed=3).texts
    part = model.generate_timed(
        [PROMPTS[5], PROMPTS[0]], num_tokens=12, how=SAMPLED, seed=3, numbers=[5, 0]
    )
    assert part.texts == [whole[5], whole[0]]
    numbers = [2**31 - 1 - place for place in range(len(PROMPTS))]
    others = model.generate_timed(PROMPTS, num_tokens=12, how=SAMPLED, seed=3, numbers=numbers)
    assert others.texts != whole


def test_a_text_ends_before_the_first_stop_string(model, free, short_chunks):
    """Three characters of a text, most of which are parts of several tokens."""
    for length in (1, 3):
        for place in range(4):
            text = free.texts[place].text
            for start in (3, 8, 14):
                stop = [text[start : start + length], text[start + 1 : start + 3], "never"]
                written = model.generate(PROMPTS, num_tokens=40, stop=stop)
                for each, whole in zip(written, free.texts, strict=True):
                    ends = [whole.text.find(s) + len(s) for s in stop if s in whole.text]
                    if not ends:
                        assert each == whole.text
                    else:
                        complete = whole.text[: min(ends)]
                        assert each == min((complete.split(s)[0] for s in stop), key=len)


def test_where_a_stop_string_ends_is_found_by_its_tokens(model, free, short_chunks):
    ids = np.concatenate([model.tokenizer.encode(word) for word in ("def", " x", " + ", "fun_")])
    drawn = generation.Drawn(ids, num_cut=2)
    decode = model.tokenizer.decode
    for stop in ("x + f", "ef", "un", " "):
        text = generation.of_drawn(drawn, decode, [stop], 40)
        assert text.text == "def x + fun_".split(stop)[0] and text.num_cut == 2
        assert stop in decode(ids[: text.num_tokens])
        assert stop not in decode(ids[: text.num_tokens - 1])
    whole = generation.of_drawn(drawn, decode, ["y"], 40)
    assert (whole.text, whole.num_tokens) == ("def x + fun_", len(ids) + 1)  # and its EOS
    assert generation.of_drawn(drawn, decode, [], len(ids)).num_tokens == len(ids)


def test_a_batch_of_which_all_rows_have_ended_draws_nothing_more(model, short_chunks, monkeypatch):
    generator = generation.Generator(
        model.trained, sampling.Sampling(temperature=0.0), batch_size=2, end_id=-1, num_ids=300
    )
    rows = [requests.Row(np.array([1, 40, 50], np.int32), 0)] * 2
    begin, go_on = generator._program(2, 32, 40)
    chunks = []
    programs = begin, lambda *arguments: chunks.append(1) or go_on(*arguments)
    monkeypatch.setattr(generator, "_program", lambda *_: programs)
    asked = []

    def is_over(ids):
        asked.append(len(ids))
        return len(ids) >= (5 if len(asked) % 2 else 9)

    drawn, seconds = generator(rows, num_tokens=40, seed=0, is_over=is_over)
    # One token of the prompt's pass, then chunks of 4; the first row ends after one of them, the
    # second after two, and the first is not asked again.
    assert asked == [1, 1, 5, 5, 9] and len(chunks) == 2
    assert seconds > 0
    assert [len(each.ids) for each in drawn] == [5, 9]


def test_what_is_drawn_is_counted(model, free):
    assert free.num_tokens == sum(text.num_tokens for text in free.texts) <= 40 * len(PROMPTS)
    assert free.texts[0].num_tokens == 40
    assert free.tokens_per_second == pytest.approx(free.num_tokens / free.seconds)
    stopped = model.generate_timed(PROMPTS, num_tokens=40, stop=[free.texts[0].text[5:8]])
    assert stopped.texts[0].num_tokens < 20


def test_of_a_long_prompt_the_end_is_read(model):
    prompts = ["def function_1_2(x):\n    return x + 2\n" * 5, "def f"]
    texts = model.generate_timed(prompts, num_tokens=6, cut_prompts=True).texts
    ids = requests.of_prompt(model.tokenizer, prompts[0], 1000).ids
    assert texts[0].num_cut == len(ids) - (model.max_length - 6) > 0 == texts[1].num_cut
    expected, _ = model._generator(16, sampling.Sampling(temperature=0.0))(
        [requests.Row(ids[-(model.max_length - 6) :], 0)], num_tokens=6, seed=0
    )
    assert texts[0].text == model.tokenizer.decode(expected[0].ids)
    assert texts[1].text == model.generate([prompts[1]], num_tokens=6)[0]
    with pytest.raises(ValueError, match=r"trained on windows of 40.*cut_prompts=True"):
        model.generate(prompts, num_tokens=6)
    with pytest.raises(ValueError, match="num_tokens=40 leaves no room for a prompt in the 40"):
        model.generate(prompts, num_tokens=40, cut_prompts=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(stop=[""]), r"stop=\[''\] must be a list of strings"),
        (dict(stop="\n"), "must be a list of strings"),
        (dict(batch_size=0), "batch_size=0 must be at least 1"),
    ],
)
def test_impossible_requests_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(["def f"], num_tokens=4, **options)


def test_programs_are_few(model):
    generator = generation.Generator(
        model.trained, sampling.Sampling(temperature=0.0), batch_size=2, end_id=-1, num_ids=300
    )
    rows = [requests.Row(np.ones(size, np.int32), 0) for size in range(1, 41, 3)]
    for num_tokens in (1, 8):
        drawn, _ = generator(rows, num_tokens=num_tokens, seed=0)
        assert {len(each.ids) for each in drawn} == {num_tokens}
    assert sorted(generator._programs) == [(2, 32, 64), (2, 40, 72)]


@pytest.mark.parametrize("mesh", [dict(fsdp=8), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_write_as_one(workdir, model, mesh):
    several = keel_jax.load(workdir, mesh=mesh_lib.make(config.MeshConfig(**mesh)))
    for how in (None, SAMPLED):
        one, other = (
            each.generate(PROMPTS, num_tokens=6, how=how, seed=1, batch_size=3)
            for each in (model, several)
        )
        assert one == other


@pytest.mark.slow
def test_a_mesh_that_splits_sequences_writes_as_one_device(workdir, model):
    mesh = mesh_lib.make(config.MeshConfig(fsdp=4, context=2))
    several = keel_jax.load(workdir, mesh=mesh)
    assert several.generate(PROMPTS, num_tokens=6) == model.generate(PROMPTS, num_tokens=6)


@pytest.mark.slow
def test_the_command_prints_texts_and_their_speed(workdir, model, tmp_path):
    command = [sys.executable, "-m", "keel_jax.generate", f"--workdir={workdir}", "--temperature=0"]
    command += ["--prompt=def f", "--prompt=1", "--stop=fu", "--num_tokens=9", "--batch_size=1"]
    command += [f"--json={tmp_path}/texts.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    prompts = ["def f", "1"]
    written = model.generate_timed(prompts, num_tokens=9, stop=["fu"])
    texts = [text.text for text in written.texts]
    samples = json.loads((tmp_path / "texts.json").read_text())
    assert samples == [
        {"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)
    ]
    assert prompts[1] + texts[1] in done.stdout
    assert re.search(rf"{written.num_tokens} tokens in .* s .*: \d+ tokens/s", done.stderr)


def test_the_string_that_is_complete_first_ends_a_text():
    for stop in itertools.permutations(["c", "bc", "z"]):
        assert generation.first_stop("abcabc", stop) == 1
    # When "b" was there, "abc" was not yet.
    assert generation.first_stop("abc", ["abc", "b"]) == generation.first_stop("ab", ["b"]) == 1
    assert generation.first_stop("abc", ["z"]) is None is generation.first_stop("abc", [])
