"""Laws of the tokenizer: every text is reproduced exactly; any other model is used as it is."""

import random
import warnings

import pytest
import sentencepiece

from keel_jax.data import tokenizer
from keel_jax.data.preparing import tokenizer_training
from tests.data import strings


@pytest.mark.parametrize("model_type", tokenizer.MODEL_TYPES)
def test_any_text_comes_back(model_type, sources, tmp_path):
    tokenizer_training.train_tokenizer(sources[:20], tmp_path / "model", 600, model_type)
    model = tokenizer.Tokenizer.load(tmp_path / "model")
    assert model.is_lossless
    generator = random.Random(0)
    texts = (
        strings.ADVERSARIAL + [strings.random_text(generator) for _ in range(1500)] + sources[-5:]
    )
    for text, ids in zip(texts, model.encode_batch(texts), strict=True):
        assert model.decode(ids) == text
        assert model.eos_id not in ids


def test_long_texts_are_cut_and_come_back(model_path, monkeypatch):
    model = tokenizer.Tokenizer.load(model_path)
    whole = model.encode("word\n" * 100)
    monkeypatch.setattr(tokenizer, "MAX_ENCODE_CHARACTERS", 50)
    for text in ("word\n" * 100, "\u2581x" * 100, "\x1b" * 101, "a" * 50, "a" * 51):
        before, ids, after = model.encode_batch(["before", text, "after"])
        assert model.decode(ids) == text
        assert model.decode(before) == "before" and model.decode(after) == "after"
    # Cut at newlines, where pieces end anyway here: "d\n" is followed by nothing but a word.
    assert len(model.encode("word\n" * 100)) <= len(whole) + 10


def test_lone_surrogate_and_foreign_id_are_errors(model_path):
    model = tokenizer.Tokenizer.load(model_path)
    with pytest.raises(ValueError, match="surrogate"):
        model.encode("a\ud800b")
    with pytest.raises(ValueError, match="2048"):
        model.decode([2048])


def _foreign_model(path, texts, **options):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(path),
        vocab_size=400,
        minloglevel=2,
        byte_fallback=True,
        hard_vocab_limit=False,
        **options,
    )
    return path.with_name(path.name + ".model")


def test_a_users_model_is_used_as_it_is(sources, tmp_path, caplog):
    lines = [line for text in sources[:5] for line in text.splitlines() if line.strip()]
    model = tokenizer.Tokenizer.load(_foreign_model(tmp_path / "plain", lines))
    assert "does not reproduce every text" in caplog.text and not model.is_lossless
    reference = sentencepiece.SentencePieceProcessor(str(tmp_path / "plain.model"))
    assert model.encode("def f(x):\n  return x").tolist() == reference.encode(
        "def f(x):\n  return x"
    )
    assert model.eos_id == reference.eos_id() == 2
    bos_only = tokenizer.Tokenizer.load(_foreign_model(tmp_path / "bos", lines, eos_id=-1))
    assert bos_only.eos_id == 1
    with pytest.raises(ValueError, match="neither an EOS nor a BOS"):
        tokenizer.Tokenizer.load(_foreign_model(tmp_path / "none", lines, eos_id=-1, bos_id=-1))


def test_what_is_no_model_is_an_error(tmp_path):
    (tmp_path / "text").write_bytes(b"text")
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="text.*4 bytes.*not a Sentence"),
    ):
        tokenizer.Tokenizer.load(tmp_path / "text")
    with pytest.raises(ValueError, match="missing"):
        tokenizer.Tokenizer.load(tmp_path / "missing")
