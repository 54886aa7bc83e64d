"""Records: a line, a record of a file or a row of a table becomes documents, or is rejected."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from keel_jax.data import chat_template
from keel_jax.data.preparing import conversations, documents
from keel_jax.data.preparing.documents import Document, Rejection

_MISSING = object()  # where a field would be

Parsed = tuple[Document, ...] | Rejection


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is read of a record: the field of its text or, with a template, its conversation."""

    text_field: str = "text"
    template: chat_template.ChatTemplate | None = None


def parse(record: bytes, layout: Layout, *, plain_text: bool) -> Parsed:
    """The documents of a JSON object in UTF-8, or why it has none; a byte-order mark is left out.

    With `plain_text`, a record that is not a JSON object of a known form is the text itself.
    """
    decoded = documents.decode(record)
    if isinstance(decoded, Rejection):
        return decoded
    plain_text = plain_text and not layout.template
    if plain_text and not decoded.startswith("{"):
        return (Document(decoded),)
    try:
        values = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        if plain_text:
            return (Document(decoded),)
        return Rejection("not JSON", f"not JSON ({error})")
    has_pair = {"prompt", "response"} <= values.keys() if plain_text else False
    if plain_text and _look_up(values, layout.text_field) is _MISSING and not has_pair:
        return (Document(decoded),)
    return from_values(values, layout)


def from_values(values: Any, layout: Layout) -> Parsed:
    """The documents of a JSON value or a table's row, or why it has none. A null is no value."""
    if not isinstance(values, dict):
        return Rejection(f"a JSON {type(values).__name__}, not an object")
    if layout.template:
        return conversations.from_values(values, layout.template)
    text = _look_up(values, layout.text_field)
    if text is not _MISSING:
        document = Document("" if text is None else text)
    elif "prompt" in values and "response" in values:
        prompt, response = values["prompt"], values["response"]
        weight = conversations.weight_of(values)
        if isinstance(weight, Rejection):
            return weight
        document = Document(
            "" if response is None else response, "" if prompt is None else prompt, weight
        )
    else:
        missing = f"with neither {layout.text_field!r} nor prompt and response"
        hint = ""
        if conversations.is_one(values):
            hint = "; it is a conversation, which needs --chat_template"
        return Rejection(missing, f"{missing}, but {conversations.keys(values)}{hint}")
    for part in (document.prompt, document.text):
        if (rejection := conversations.not_text(part)) is not None:
            return rejection
    return (document,)


def _look_up(values: Mapping[str, Any], field: str) -> Any:
    """The value of `field`, or _MISSING; `a.b` is also the field b of the object a."""
    if field in values:
        return values[field]
    head, dot, rest = field.partition(".")
    while dot:
        if isinstance(inner := values.get(head), dict):
            found = _look_up(inner, rest)
            if found is not _MISSING:
                return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return _MISSING
