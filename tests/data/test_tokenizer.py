"""Laws of the tokenizer: every text comes back exactly; the model depends on the text alone."""

import pathlib
import random
import warnings

import pytest
import sentencepiece

from keel_jax.data import tokenizer
from keel_jax.data.preparing import stdlib

ADVERSARIAL = [
    "",
    " ",
    "\n",
    "  a  ",
    "\n\n    def f(x):\n\t\treturn  x\n",
    "a\r\nb\rc\n\r",
    "\u2581",
    "a\u2581b \u2581 ",
    "\x00",
    "a\x00b",
    "\x1b",
    "\x1ba",
    "\x1b\x1ba\u2581",
    "\x1c\x1d\x1e\x1f",
    "\u2585\u2047 \u2047",
    "<unk><s></s><pad><0x0A><keel_eos_1>",
    "\ufeff\ufffd\uffff\U0010ffff\ue000",
    "e\u0301 \u00e9 \ufb01 \u3000 \u00a0 \u200b\u2028\u2029",
    "漢字かな 한글 العربية 👩‍👩‍👧‍👦",
    "x" * 3000 + " " * 3000 + "\n" * 300,
]


@pytest.fixture(scope="module")
def sources():
    # Enough of real code for real whitespace pieces.
    files = [file.path for file in stdlib.source_files()]
    # Bytes, so that \r\n stays what it is.
    return [pathlib.Path(path).read_bytes().decode() for path in files[:60]]


@pytest.fixture(scope="module")
def model_path(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.model"
    tokenizer.train(sources, path, 2048)
    return path


def _random_text(generator: random.Random) -> str:
    kinds = (
        lambda: chr(generator.randrange(0x80)),
        lambda: chr(generator.randrange(0xD800)),
        lambda: chr(generator.randrange(0xE000, 0x110000)),
        lambda: generator.choice("\n\t\r \x1b\x1c\x1d\x1e\x1f\u2581\u2585\x00abcde"),
    )
    return "".join(generator.choice(kinds)() for _ in range(generator.randrange(60)))


@pytest.mark.parametrize("model_type", tokenizer.MODEL_TYPES)
def test_any_text_comes_back(model_type, sources, tmp_path):
    tokenizer.train(sources[:20], tmp_path / "model", 600, model_type)
    model = tokenizer.Tokenizer.load(tmp_path / "model")
    assert model.is_lossless
    generator = random.Random(0)
    texts = ADVERSARIAL + [_random_text(generator) for _ in range(1500)] + sources[-5:]
    for text, ids in zip(texts, model.encode_batch(texts), strict=True):
        assert model.decode(ids) == text
        assert model.eos_id not in ids


def test_each_character_is_in_one_training_word():
    generator = random.Random(1)
    for text in ADVERSARIAL + [_random_text(generator) for _ in range(500)]:
        assert "".join(tokenizer._WORD_PATTERN.findall(text)) == text


def test_long_texts_are_cut_and_come_back(model_path, monkeypatch):
    model = tokenizer.Tokenizer.load(model_path)
    whole = model.encode("word\n" * 100)
    monkeypatch.setattr(tokenizer, "_MAX_ENCODE_CHARACTERS", 50)
    for text in ("word\n" * 100, "\u2581x" * 100, "\x1b" * 101, "a" * 50, "a" * 51):
        before, ids, after = model.encode_batch(["before", text, "after"])
        assert model.decode(ids) == text
        assert model.decode(before) == "before" and model.decode(after) == "after"
    # Cut at newlines, where pieces end anyway here: "d\n" is followed by nothing but a word.
    assert len(model.encode("word\n" * 100)) <= len(whole) + 10


def test_code_has_whitespace_pieces_and_three_bytes_a_token(model_path, sources):
    model = tokenizer.Tokenizer.load(model_path)
    ids = model.encode_batch(sources)
    num_bytes = sum(len(text.encode()) for text in sources)
    # Measured 3.4 on these files; cut at whitespace it is below 2.9.
    assert num_bytes / sum(map(len, ids)) > 3.1
    pieces = [model.piece(i) for i in range(model.vocab_size)]
    assert any(piece.startswith("\n        ") for piece in pieces)


def test_model_depends_on_the_text_alone(model_path, sources, tmp_path):
    fingerprint = tokenizer.train(reversed(sources), tmp_path / "again.model", 2048)
    assert fingerprint == tokenizer.Tokenizer.load(model_path).fingerprint
    assert fingerprint != tokenizer.train(sources[1:], tmp_path / "other.model", 2048)


def test_impossible_vocabularies_are_errors_with_both_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"100 pieces.*at least 258"):
        tokenizer.train(["some words"], tmp_path / "model", 100)
    with pytest.raises(ValueError, match=r"5000 pieces.*<= \d+"):
        tokenizer.train(["some words"], tmp_path / "model", 5000)
    with pytest.raises(ValueError, match="no text"):
        tokenizer.train([""], tmp_path / "model", 300)
    with pytest.raises(ValueError, match="wordpiece.*bpe"):
        tokenizer.train(["text"], tmp_path / "model", 300, "wordpiece")
    assert not list(tmp_path.iterdir())


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
    assert "does not give back every text" in caplog.text and not model.is_lossless
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
