"""HumanEval: the body of a Python function after its signature and docstring."""

from keel_jax.tasks import items, locating, records, task


def _item(record: records.Record) -> items.Problem:
    prompt = record.text("prompt")
    return items.Problem(
        where=record.where,
        prompt=prompt,
        solution=record.text("canonical_solution"),
        before=prompt,
        tests=f"{record.text('test')}\ncheck({record.text('entry_point')})",
    )


TASKS = (
    task.Code(
        name="humaneval",
        source="Chen et al. 2021 (2107.03374); humaneval/humaneval.yaml",
        domain=task.MATHEMATICS,
        files=locating.Files(never=("plus",)),
        item=_item,
        stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
        num_tokens=1024,
    ),
)
