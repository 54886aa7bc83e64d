"""MBPP: small Python programs from a sentence and three tests."""

from collections.abc import Sequence

from keel_jax.tasks import items, locating, records, task

# Which problems are tests and which are the examples of the prompt (the authors' README).
_TESTS, _SHOTS = range(11, 511), (2, 3, 4)


def _item(record: records.Record) -> items.Problem:
    tests = record.texts("test_list")
    prompt = (
        "You are an expert Python programmer, and here is your task: "
        f"{record.text('text')} Your code should pass these tests:\n\n"
        + "\n".join(tests[:3])
        + "\n[BEGIN]\n"
    )
    set_up = record.text("test_setup_code") if "test_setup_code" in record else ""
    return items.Problem(
        where=record.where,
        prompt=prompt,
        solution=record.text("code").replace("\r\n", "\n") + "\n[DONE]",
        before=set_up + "\n" if set_up else "",
        tests="\n".join(tests),
    )


def _split(source: locating.Source, files: locating.Files) -> Sequence[records.Record]:
    """The tests: the authors' file holds all problems, that of the Hub these alone."""
    return [r for r in locating.read(source, files) if r.integer("task_id") in _TESTS]


def _examples(source: locating.Source, files: locating.Files) -> Sequence[records.Record]:
    return [r for r in locating.read(source, files) if r.integer("task_id") in _SHOTS]


TASKS = (
    task.Code(
        name="mbpp",
        source="Austin et al. 2021 (2108.07732); mbpp/mbpp.yaml",
        domain=task.MATHEMATICS,
        files=locating.Files(
            scored=("mbpp", "test"), shots=("mbpp", "prompt"), never=("sanitized",)
        ),
        item=_item,
        reader=_split,
        shot_reader=_examples,
        num_shots=3,
        are_shots_first=True,
        stop=("[DONE]",),
    ),
)
