"""tokenizer.json gives the ids of the SentencePiece model on any text, and the text back."""

import json
import random

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from keel_jax.data import tokenizer
from keel_jax.data.preparing import tokenizer_training
from keel_jax.interchange import sentencepiece_model, tokenizer_files, tokenizer_json
from tests.data import strings

KINDS = ("bpe", "unigram")


def _runs(generator: random.Random) -> str:
    """Runs of one character, which can be cut in many ways that are equally likely."""
    characters = (" ", "  ", "=", "-", "_", "\n", "a", "#", "\u2581")
    parts = [generator.choice(characters) * generator.randrange(9) for _ in range(30)]
    return "".join(parts)


@pytest.fixture(scope="session")
def texts(sources):
    """10 000 of them, none with a lone surrogate."""
    generator = random.Random(0)
    special = [
        "the byte <0x0A> is <0xFF> and <0x0a>",
        "<unk>x<keel_eos_1><keel_eos_1> <s>",
        "\u2581<0x\x1b0A>",
        "word\n" * 14_000,
        " " * 70_000,
        "\x1b\n" * 40_000,
        "é漢" * 40_000,
    ]
    found = [*strings.ADVERSARIAL, *special, *sources]
    found += [_runs(generator) for _ in range(3000)]
    return found + [strings.random_text(generator) for _ in range(10_000 - len(found))]


def _read(content: bytes) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(content.decode())


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_equal_on_any_text(kind, tokenizer_paths, texts):
    ours = tokenizer.Tokenizer.load(tokenizer_paths[kind])
    files = tokenizer_files.make(tokenizer_paths[kind].read_bytes(), 48)
    theirs = _read(files.files["tokenizer.json"])
    assert files.notes == () and len(texts) == 10_000
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        encoded = theirs.encode(text)
        assert encoded.ids == [ours.eos_id, *ids.tolist()], text[:200]
        assert theirs.decode(encoded.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_no_text_decode_as_ours(kind, tokenizer_paths):
    ours = tokenizer.Tokenizer.load(tokenizer_paths[kind])
    files = tokenizer_files.make(tokenizer_paths[kind].read_bytes(), 48)
    theirs = _read(files.files["tokenizer.json"])
    escape = ours.encode("\x1b")[0]  # half of an escape sequence
    for ids in ([1], [0], [5, 1, 7, 0], [escape], [escape, 1, 300], [300, escape, escape]):
        assert theirs.decode(ids) == ours.decode(ids)


def test_scores_that_do_not_add_up_exactly_are_told(sources, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "_with_rounded_scores", lambda content: content)
    tokenizer_training.train_tokenizer(sources[:8], tmp_path / "model", 500, "unigram")
    files = tokenizer_files.make((tmp_path / "model").read_bytes(), 48)
    assert "equally likely" in files.notes[0] and "tokenizer.json" in files.files


def test_rounded_scores_cut_texts_alike(sources, tokenizer_paths, tmp_path, monkeypatch):
    """Rounding to an eighth of a nat costs less than 0.1 % more tokens."""
    monkeypatch.setattr(tokenizer_training, "_with_rounded_scores", lambda content: content)
    tokenizer_training.train_tokenizer(sources, tmp_path / "model", 700, "unigram")
    counts = [
        sum(map(len, tokenizer.Tokenizer.load(path).encode_batch(sources)))
        for path in (tokenizer_paths["unigram"], tmp_path / "model")
    ]
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)


def _changed(path, change) -> bytes:
    proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    change(proto)
    return proto.SerializeToString()


def _piece(proto, text, kind, score=-1000.0):
    proto.pieces.add(piece=text, score=score, type=kind)


_NORMAL, _USER_DEFINED, _UNUSED = 1, 4, 5


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda p: setattr(p.normalizer_spec, "remove_extra_whitespaces", True), "repeated spaces"),
        (lambda p: setattr(p.normalizer_spec, "precompiled_charsmap", b"x"), "it normalizes"),
        (lambda p: setattr(p.normalizer_spec, "escape_whitespaces", False), "escape spaces"),
        (lambda p: setattr(p.trainer_spec, "treat_whitespace_as_suffix", True), "after words"),
        (lambda p: setattr(p.trainer_spec, "byte_fallback", False), "no byte fallback"),
        (lambda p: setattr(p.trainer_spec, "model_type", 4), "neither BPE nor unigram"),
        (lambda p: _piece(p, "<user>", _USER_DEFINED), "a user defined"),
        (lambda p: _piece(p, "zq", _UNUSED), "unused"),
        (lambda p: _piece(p, "z\u4e00\u4e01", _NORMAL), "has a character without a piece"),
        (lambda p: (_piece(p, "zq", _NORMAL), _piece(p, "qz", _NORMAL)), "the same score"),
    ],
)
def test_what_cannot_be_reproduced_is_refused_by_name(change, told, tokenizer_paths):
    content = _changed(tokenizer_paths["bpe"], change)
    with pytest.raises(sentencepiece_model.Unsupported, match=told):
        tokenizer_json.convert(content)


def test_a_name_that_pieces_put_together_is_refused(tokenizer_paths):
    """Of the unigram model, which would find it in texts."""

    def add_all_pairs(proto):
        wanted = {"<u", "un", "nk", "k>", *"<unk>"}
        for pair in wanted - {piece.piece for piece in proto.pieces}:
            _piece(proto, pair, _NORMAL, score=-10.0)

    content = _changed(tokenizer_paths["unigram"], add_all_pairs)
    with pytest.raises(sentencepiece_model.Unsupported, match="'<unk>', can be put together"):
        tokenizer_json.convert(content)


def test_without_a_tokenizer_json_the_folder_has_the_model_alone(tokenizer_paths):
    content = _changed(
        tokenizer_paths["bpe"],
        lambda p: setattr(p.normalizer_spec, "remove_extra_whitespaces", True),
    )
    files = tokenizer_files.make(content, 48)
    assert files.files == {"tokenizer.model": content}
    assert "no tokenizer.json" in files.notes[0] and "repeated spaces" in files.notes[0]


def test_a_tokenizer_json_of_other_ids_is_not_written(tokenizer_paths, monkeypatch):
    """Whatever the reason: here, merges in another order."""

    def reversed_merges(model):
        content = right(model)
        return {**content, "merges": content["merges"][::-1]}

    right = tokenizer_json._bpe
    monkeypatch.setattr(tokenizer_json, "_bpe", reversed_merges)
    files = tokenizer_files.make(tokenizer_paths["bpe"].read_bytes(), 48)
    assert list(files.files) == ["tokenizer.model"] and "would be" in files.notes[0]


def test_a_users_model_with_a_space_before_texts(sources, tmp_path):
    """As Llama's: identity, and a dummy prefix; texts are not escaped, so not all come back."""
    lines = [line for text in sources[:5] for line in text.splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "users"),
        vocab_size=500,
        model_type="bpe",
        minloglevel=2,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    content = (tmp_path / "users.model").read_bytes()
    files = tokenizer_files.make(content, 48)
    ours, theirs = tokenizer.Tokenizer(content), _read(files.files["tokenizer.json"])
    generator = random.Random(1)
    texts = [*strings.ADVERSARIAL, *(strings.random_text(generator) for _ in range(1000))]
    for text in texts:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids) == ours.decode(ids)
    settings = json.loads(files.files["tokenizer_config.json"])
    assert settings["eos_token"] == "</s>" and settings["split_special_tokens"]
