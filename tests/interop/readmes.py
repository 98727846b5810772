"""What the READMEs of exported folders say, run."""

import re


def code_of(folder):
    """The Python in the README of an exported folder, which is there."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    return code.replace("path/of/this/folder", str(folder))


def names_of(folder):
    """What that code defines."""
    names: dict = {}
    exec(code_of(folder), names)
    return names
