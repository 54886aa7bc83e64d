"""Laws of the embedded corpus: the same bytes everywhere, and nothing else passes for it."""

import importlib.metadata
import pathlib
import re
import shutil

import pytest

from keel_jax.data.preparing import corpus, embedded

ROOT = pathlib.Path(__file__).parents[3]


def test_the_corpus_is_source_without_tests_tables_and_twins():
    files = embedded.source_files()
    paths = [file.relative_path for file in files]
    assert paths == sorted(paths) and "core/expr.py" in paths
    assert (len(files), sum(file.num_bytes for file in files)) == (812, 15_854_120)
    assert len({file.sha256 for file in files}) == len(files)
    assert not any(re.search(r"(^|/)(tests|benchmarks|_antlr)/", path) for path in paths)


def test_the_index_will_say_what_the_corpus_is():
    whole = corpus.discover(["embedded"])
    assert whole.description["num_bytes"] == whole.num_bytes
    assert (
        whole.description["digest"] == embedded.DIGEST == embedded.digest(embedded.source_files())
    )


def test_the_version_that_is_read_is_the_one_that_is_installed():
    assert f'"{embedded.PACKAGE}=={embedded.VERSION}"' in (ROOT / "setup.py").read_text()


class _Distribution:
    def __init__(self, version, root):
        self.version, self._root = version, root

    def locate_file(self, name):
        return self._root / name


def test_a_changed_copy_is_refused(tmp_path, monkeypatch):
    for file in embedded.source_files():
        target = tmp_path / "sympy" / file.relative_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.path, target)
    installed = _Distribution(embedded.VERSION, tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: installed)
    assert embedded.digest(embedded.source_files()) == embedded.DIGEST
    with target.open("ab") as changed:
        changed.write(b"#")
    with pytest.raises(ValueError, match="is not the one that was released.*--force-reinstall"):
        embedded.source_files()


def test_another_version_and_none_are_refused(tmp_path, monkeypatch):
    other = _Distribution("1.13.3", tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: other)
    with pytest.raises(ValueError, match="1.14.0, and 1.13.3 is installed: pip install"):
        embedded.source_files()

    def fail(_):
        raise importlib.metadata.PackageNotFoundError("sympy")

    monkeypatch.setattr(importlib.metadata, "distribution", fail)
    with pytest.raises(ValueError, match="not installed: pip install sympy==1.14.0"):
        embedded.source_files()
