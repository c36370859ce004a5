"""Write docs/python.md from the docstrings of the public Python interface."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import dekag
from dekag import pipeline

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/python.md"
COMMAND = "python scripts/python_reference.py"
INTERFACE = (dekag.SemanticLink, dekag.PixelLink, dekag.LinkConditions, dekag.load_profile, dekag.Client)
PARTS = (
    pipeline.ReceivedImage,
    pipeline.ReceivedPicture,
    pipeline.send_file,
    pipeline.LinkResult,
    pipeline.Rate,
    pipeline.Sender,
    pipeline.Receiver,
    pipeline.apply_channel,
    pipeline.receive,
    pipeline.DigitalSender,
    pipeline.DigitalReceiver,
    pipeline.ConditionedCodec,
)
HEAD = f"""\
# Python interface

Written by `{COMMAND}` from the docstrings; do not edit. The tests run every example.

An image over a channel is five lines:

```python
from dekag import LinkConditions, SemanticLink

link = SemanticLink.load("stickers")
image = link.image("a red car on the beach", LinkConditions(snr_db=5, fading="rayleigh"), seed=7)
image.save("car.png")
print(f"PSNR {{image.psnr_db:.1f}} dB in {{image.channel_uses}} channel uses")
```

Importing `dekag` loads no model's libraries; each of its names is imported when it is first used.
"""
_SECTION = re.compile(r"^(Example|Args|Attributes|Returns|Raises):$")


def reference() -> str:
    """The text of docs/python.md."""
    lines = [HEAD]
    for each in INTERFACE:
        lines += _entry(each, "dekag")
    lines += ["## Parts of the link", "", "From `dekag.pipeline`, to use or to replace by themselves.", ""]
    for each in PARTS:
        lines += _entry(each, "dekag.pipeline", level=3)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _entry(item: Any, module: str, level: int = 2) -> list[str]:
    """Heading, signature and docstring of a class or function, then of the class's methods."""
    lines = [f"{'#' * level} {item.__name__}", "", *_signature(item, f"{module}.{item.__name__}")]
    lines += list(_text(inspect.getdoc(item) or ""))
    if inspect.isclass(item):
        if issubclass(item, BaseModel):
            lines += ["| field | default | meaning |", "|---|---|---|"]
            for name, field in item.model_fields.items():
                lines.append(f"| `{name}` | `{field.default!r}` | {field.description} |")
            lines.append("")
        for name, member in vars(item).items():
            function = getattr(member, "__func__", member)
            if name.startswith("_") or not (inspect.isfunction(function) or isinstance(member, property)):
                continue
            if issubclass(item, BaseModel) and not isinstance(member, property):
                continue
            lines += [f"{'#' * (level + 1)} {item.__name__}.{name}", ""]
            lines += _signature(getattr(item, name), f"{item.__name__}.{name}")
            lines += list(_text(inspect.getdoc(member) or ""))
    return lines


def _signature(item: Any, name: str) -> list[str]:
    if isinstance(item, property) or (inspect.isclass(item) and issubclass(item, BaseModel)):
        return []
    signature = inspect.signature(item)
    given = []
    for each in signature.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in given:
            given.append("*")
        if each.name != "self":
            given.append(_parameter(each))
    back = signature.return_annotation
    arrow = "" if back is signature.empty or inspect.isclass(item) else f" -> {back}"
    one = f"{name}({', '.join(given)}){arrow}"
    if len(one) > 100:
        one = f"{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){arrow}"
    return ["```", one, "```", ""]


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {parameter.annotation}"
    if parameter.default is parameter.empty:
        return text
    default = "1/96" if parameter.default == pipeline.DEFAULT_CBR else repr(parameter.default)
    default = default.replace(f"{ROOT}/", "")  # the page is the same wherever the clone is
    return f"{text} = {default}"


def _text(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: examples as blocks, arguments and the like as lists."""
    section, lines = "", inspect.cleandoc(docstring).splitlines()
    at = 0
    while at < len(lines):
        if match := _SECTION.match(lines[at]):
            section = match[1]
            body = []
            while at + 1 < len(lines) and (not lines[at + 1] or lines[at + 1].startswith("    ")):
                at += 1
                body.append(lines[at].removeprefix("    "))
            yield from _section(section, body)
        else:
            yield lines[at].replace("``", "`")
        at += 1
    yield ""


def _section(name: str, body: list[str]) -> Iterator[str]:
    while body and not body[-1]:
        body.pop()
    if name == "Example":
        yield from ["```pycon", *body, "```", ""]
        return
    yield from [f"{'Arguments' if name == 'Args' else name}:", ""]
    for line in body:
        if line.startswith(" ") or name == "Returns":  # goes on
            yield line.replace("``", "`")
        else:
            what, _, meaning = line.partition(": ")
            names = ", ".join(f"`{each}`" for each in what.split(", "))
            yield f"- {names}: {meaning}".replace("``", "`")
    yield ""


if __name__ == "__main__":
    PAGE.write_text(reference())
