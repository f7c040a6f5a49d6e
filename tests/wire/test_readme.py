"""The examples in the package's README run, in order, as one program."""

import re
from pathlib import Path

import fleet.wire.errors

README = Path(fleet.wire.errors.__file__).with_name("README.md")


def test_the_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) >= 3
    exec(compile("\n".join(examples), str(README), "exec"), {})  # noqa: S102 - our own page
