"""Laws of the embedded corpus."""

from keel_jax.data.preparing import corpus, stdlib


def test_stdlib_is_source_without_tests_tables_and_twins():
    files = stdlib.source_files()
    paths = [file.relative_path for file in files]
    assert paths == sorted(paths) and "argparse.py" in paths
    assert len({file.sha256 for file in files}) == len(files)
    for left_out in ("/test/", "/tests/", "/idle_test/", "/encodings/", "/site-packages/"):
        assert not any(left_out in f"/{path}" for path in paths)
    assert 5_000_000 < sum(file.num_bytes for file in files) < 40_000_000
    whole = corpus.discover(["stdlib"])
    assert whole.description["num_bytes"] == whole.num_bytes
    assert whole.description["python_version"].startswith("3.")
