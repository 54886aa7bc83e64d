"""The files of a split are those that its words name, and nothing is counted twice."""

import pytest

from keel_jax.tasks import locating


def _find(folder, split, *paths, name="exam", **options):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")
    files = locating.Files(**options)
    found = locating.find(name, files, folder, split)
    return [(str(source.path.relative_to(folder)), source.subject) for source in found]


def test_the_words_of_a_path_say_its_split(tmp_path):
    paths = ("exam/a_test.jsonl", "exam/a_train.jsonl", "exam/contest.jsonl", "exam/test.md")
    assert _find(tmp_path, ("test",), *paths) == [("exam/a_test.jsonl", "")]
    assert _find(tmp_path, ("train",)) == [("exam/a_train.jsonl", "")]


def test_a_folder_is_found_whatever_the_case_of_its_name(tmp_path):
    assert _find(tmp_path, (), "E-Xam/x.jsonl") == [("E-Xam/x.jsonl", "")]


def test_without_a_folder_files_begin_with_the_name(tmp_path):
    assert _find(tmp_path, ("test",), "Exam_test_300.jsonl", "other_test.jsonl") == [
        ("Exam_test_300.jsonl", "")
    ]


def test_parts_of_one_split_are_one(tmp_path):
    paths = [f"exam/test-0000{part}-of-00002.parquet" for part in (1, 0)]
    assert _find(tmp_path, ("test",), *paths) == [(path, "") for path in sorted(paths)]


def test_two_formats_of_one_split_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"test\.csv and .*test\.jsonl both hold the same split"):
        _find(tmp_path, ("test",), "exam/test.jsonl", "exam/test.csv")


def test_subjects_are_what_is_left_of_a_name(tmp_path):
    paths = ("exam/test/high_school_physics_test.csv", "exam/law/test-00000-of-00001.parquet")
    assert _find(tmp_path, ("test",), *paths, has_subjects=True) == [
        (paths[0], "high_school_physics"),
        (paths[1], "law"),
    ]


def test_a_folder_of_all_subjects_does_not_count_beside_them(tmp_path):
    alone = _find(tmp_path, ("test",), "exam/all/test.parquet", has_subjects=True)
    assert alone == [("exam/all/test.parquet", "all")]
    found = _find(tmp_path, ("test",), "exam/law/test.parquet", has_subjects=True)
    assert found == [("exam/law/test.parquet", "law")]


def test_what_is_missing_is_said_with_what_is_there(tmp_path):
    with pytest.raises(ValueError, match=r"exam: no file of .*exam is named as one with test or"):
        _find(tmp_path, ("test", "val"), "exam/train.jsonl")
    with pytest.raises(ValueError, match=r"with test of easy; there is train\.jsonl\."):
        _find(tmp_path, ("test",), only=("easy",))
    with pytest.raises(ValueError, match=r"there is no file\."):
        _find(tmp_path, (), name="other")
    with pytest.raises(ValueError, match=r"--task_data=.*nowhere is not a directory"):
        _find(tmp_path / "nowhere", ())
