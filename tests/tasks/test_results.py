"""Means, standard errors and averages, computed by hand."""

import math

import pytest

from keel_jax.tasks import catalogue, results, summary, task


def _result(name, *values, chances=0.25, subjects=None):
    declared = catalogue.all_tasks()[name]
    grades = [{declared.metrics[0]: value} for value in values]
    return results.summarize(
        declared, 0, grades, [chances] * len(values), subjects or [""] * len(values), 0
    )


def test_a_mean_has_the_standard_error_of_the_sample():
    result = _result("piqa", 1, 1, 1, 0)
    assert result.headline.value == 0.75
    assert result.headline.stderr == pytest.approx(math.sqrt(0.25 / 4))  # s² = 4/3 · 3/16
    assert _result("piqa", 1).headline == results.Mean(1.0, None)


def test_subjects_are_means_of_their_items():
    result = _result("mmlu", 1, 0, 1, subjects=["law", "law", "physics"])
    assert result.subjects == {"law": (0.5, 2), "physics": (1.0, 1)}
    assert result.headline.value == pytest.approx(2 / 3)


def test_every_benchmark_counts_once_in_an_average():
    found = [_result("piqa", 1, 1, 0, 0), _result("sciq", 1, 1), _result("gsm8k", 0, 1)]
    averages = results.averages(found)
    assert averages[task.KNOWLEDGE].value == 0.75
    assert averages[task.KNOWLEDGE].tasks == ("piqa", "sciq")
    assert averages[task.MATHEMATICS].value == 0.5
    assert averages["all"].value == pytest.approx((0.5 + 1 + 0.5) / 3)
    errors = [result.headline.stderr for result in found]
    assert averages["all"].stderr == pytest.approx(math.hypot(*errors) / 3)
    assert "table4" not in averages


def test_a_group_of_the_papers_is_averaged_when_it_is_complete():
    names = catalogue.GROUPS["table4"]
    found = [_result(name, place % 2) for place, name in enumerate(names)]
    assert results.averages(found)["table4"] == results.Average(
        0.5, None, tuple(result.name for result in found)
    )
    assert "table4" not in results.averages(found[1:])


def test_the_table_holds_every_number():
    found = [_result("piqa", 1, 1, 1, 0), _result("gsm8k", 1, chances=0)]
    lines = summary.table(found).split("\n")
    assert lines[2].split() == ["piqa", "4", "0", "acc_norm", "0.7500", "0.2500", "0.250"]
    assert lines[4].split() == ["gsm8k", "1", "0", "exact_match", "1.0000"]
    assert lines[-1].split() == ["all", "2", "tasks", "0.8750"]
    assert not any(line.endswith(" ") for line in lines)


def test_a_prompt_that_was_cut_is_said():
    declared = catalogue.all_tasks()["piqa"]
    found = [results.summarize(declared, 0, [{"acc": 1.0}] * 3, [0.5] * 3, [""] * 3, 2)]
    assert summary.table(found).endswith("of which only the end was read: piqa: 2.")


def test_the_figure_is_a_png():
    assert summary.draw([_result("piqa", 1, 0), _result("gsm8k", 1)], "t")[:4] == b"\x89PNG"
