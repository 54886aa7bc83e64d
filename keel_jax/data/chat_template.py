"""Chat templates: how messages become the text that a model reads.

A template is data: the strings before and after a message of each role. A conversation is written
message by message, and the prompt of a response ends with what comes before a message of the
assistant's:

    prompt([system, user, …, user]) = before(system) + text + after(system) + … + before(assistant)

The response follows, and EOS ends it. Prompt and response are tokenized separately, in training as
in generation, so that no piece spans the two. Texts are taken as they are: a message that contains
the strings of a template looks to the model like several messages.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from keel_jax import errors

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)
# The name of no template: prompts and responses are taken as they are.
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side says; `role` is one of ROLES."""

    role: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template: of each role, the strings before and after a message."""

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant's next message follows."""
        pieces = []
        for message in messages:
            before, after = getattr(self, message.role)
            pieces += [before, message.text, after]
        return "".join([*pieces, self.assistant[0]])

    @property
    def digest(self) -> str:
        """Identifies the strings; sha256, hexadecimal."""
        return hashlib.sha256(json.dumps([getattr(self, r) for r in ROLES]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The template as it is written to an index and to checkpoints."""
        return {"name": self.name, **{role: list(getattr(self, role)) for role in ROLES}}

    @classmethod
    def from_json(cls, values: object) -> "ChatTemplate":
        """The inverse of `to_json`.

        Raises:
          ValueError: the values are not those of a template.
        """
        if not isinstance(values, Mapping) or set(values) != {"name", *ROLES}:
            raise ValueError(f"{str(values)[:80]} is not a chat template")
        strings = {role: values[role] for role in ROLES}
        for pair in strings.values():
            if not isinstance(pair, list) or list(map(type, pair)) != [str, str]:
                raise ValueError(f"{str(pair)[:80]} is not two strings of a chat template")
        return cls(name=str(values["name"]), **{role: tuple(s) for role, s in strings.items()})


TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate(
            name="turns",
            system=("System:\n", "\n\n"),
            user=("User:\n", "\n\n"),
            assistant=("Assistant:\n", "\n\n"),
        ),
        # That of Stanford Alpaca's records (github.com/tatsu-lab/stanford_alpaca), without its
        # introduction, which a system message can give.
        ChatTemplate(
            name="alpaca",
            system=("", "\n\n"),
            user=("### Instruction:\n", "\n\n"),
            assistant=("### Response:\n", "\n\n"),
        ),
        # ChatML (github.com/openai/openai-python, chatml.md). Its marks are ordinary text here.
        ChatTemplate(
            name="chatml",
            system=("<|im_start|>system\n", "<|im_end|>\n"),
            user=("<|im_start|>user\n", "<|im_end|>\n"),
            assistant=("<|im_start|>assistant\n", "<|im_end|>\n"),
        ),
    )
}
NAMES = (NONE, *TEMPLATES)


def by_name(name: str) -> ChatTemplate | None:
    """The template of that name; None for NONE.

    Raises:
      UserError: there is none of that name.
    """
    if name not in NAMES:
        raise errors.UserError(f"Chat template {name!r} is unknown; choose one of {NAMES}.")
    return TEMPLATES.get(name)


def parse_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of {"role": …, "content": …} that ask for a response.

    Raises:
      UserError: no message, an unknown role, a content that is not a string, or a last message of
        the assistant's; the message is named by its position, from 0.
    """
    parsed = []
    for position, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise errors.UserError(
                f"messages[{position}] has the role {role!r}; it must be one of {ROLES}."
            )
        if not isinstance(content, str):
            raise errors.UserError(
                f"messages[{position}] has the content {content!r:.40}, not a string."
            )
        parsed.append(Message(role, content))
    if not parsed or parsed[-1].role == ASSISTANT:
        raise errors.UserError(
            "A response follows a message of the user's, but "
            + ("the last message is the assistant's." if parsed else "there is no message.")
        )
    return parsed
