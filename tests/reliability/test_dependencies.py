"""Acceptance: dependencies may be used from a package under Apache-2.0, and none of its modules opens pickles."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PERMISSIVE = re.compile(r"Apache|MIT|BSD|Python Software Foundation|matplotlib|ISC|Zlib|PSF", re.IGNORECASE)
WEAK_COPYLEFT = {"num2words"}
"""LGPL: imported, unchanged and replaceable, which it permits."""

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]


@pytest.mark.parametrize("name", [re.match(r"[\w.-]+", requirement)[0] for requirement in DECLARED])
def test_the_licence_permits_the_use(name):
    metadata = importlib.metadata.metadata(name)
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    stated = (metadata.get("License") or "")[:100]  # some state the whole text
    licence = " ".join([metadata.get("License-Expression") or "", stated, *classifiers])
    if name in WEAK_COPYLEFT:
        assert "LGPL" in licence
        return
    assert PERMISSIVE.search(licence), licence
    assert not re.search(r"\bA?GPL", licence), licence


UNSAFE = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}


@pytest.mark.parametrize("path", sorted((ROOT / "transformer_jax").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_opens_pickles_or_evaluates_text(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not {name.partition(".")[0] for name in names} & UNSAFE
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in ("eval", "exec", "__import__")
            assert not any(word.arg == "allow_pickle" for word in node.keywords)
