"""Filling in the files of an engine.

In a shell script the line `# cloud.sh` becomes that file, and `# settings` the assignments of the settings that it uses. In
YAML, `{{NAME}}` becomes the value as JSON, which is YAML too; a line whose value is None is left out, and `{{FILE.sh}}` becomes
the script that the settings hold under its name.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).parent


def render(file: str, settings: Mapping[str, Any]) -> str:
    """One file, filled in.

    Args:
      file: name of a template of this folder, *.sh or *.yaml.
      settings: strings, numbers, booleans and lists of strings; None leaves a line of YAML out.
    """
    text = (_TEMPLATES / file).read_text()
    return _yaml(text, settings) if file.endswith(".yaml") else _shell(text, settings)


def _shell(text: str, settings: Mapping[str, Any]) -> str:
    text = text.replace("# cloud.sh\n", _shared(), 1)
    code = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    used = sorted(name for name in settings if name.isupper() and re.search(rf"\b{name}\b", code))
    lines = [f"{name}={_quote(settings[name])}" for name in used]
    return text.replace("# settings\n", "".join(f"{line}\n" for line in lines), 1)


def _shared() -> str:
    """The shared functions, without the lines on top that explain the file."""
    return (_TEMPLATES / "cloud.sh").read_text().partition("\n\n")[2]


def _quote(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({' '.join(map(shlex.quote, value))})"
    if isinstance(value, bool):
        return "yes" if value else "''"
    return shlex.quote(str(value))


def _yaml(text: str, settings: Mapping[str, Any]) -> str:
    lines = []
    for line in text.splitlines():
        names = re.findall(r"\{\{([\w.]+)\}\}", line)
        if names and names[0].endswith(".sh"):
            lines.append(textwrap.indent(settings[names[0]].rstrip(), " " * line.index("{{")))
        elif all(settings[name] is not None for name in names):
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: json.dumps(settings[match[1]]), line))
    return "\n".join(lines) + "\n"
