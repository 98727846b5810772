"""Dependencies are free to use under Apache-2.0, in the versions that tests run with; no module opens pickles."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PERMISSIVE = re.compile(r"Apache|MIT|BSD|Python Software Foundation|matplotlib|ISC|Zlib|PSF|Unlicense", re.IGNORECASE)
COPYLEFT = re.compile(r"\bA?GPL|LGPL|MPL|EUPL|CDDL")
WEAK_COPYLEFT = {"certifi": "MPL", "num2words": "LGPL", "tqdm": "MPL"}
"""Imported, unchanged and replaceable, which these permit."""


def declared():
    """The requirements of the package, and those of each extra by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: list(map(Requirement, lines)) for name, lines in project["optional-dependencies"].items()}
    return list(map(Requirement, project["dependencies"])), extras


def installed_with_the_package():
    """Metadata of what the package needs, directly or not; what this system does not need is left out."""
    found, waiting = {}, declared()[0]
    while waiting:
        needed = waiting.pop()
        if needed.name in found:
            continue
        found[needed.name] = importlib.metadata.metadata(needed.name)
        for requirement in map(Requirement, importlib.metadata.requires(needed.name) or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *needed.extras)):
                waiting.append(requirement)
    return found


def licence_of(metadata):
    classifiers = [line for line in metadata.get_all("Classifier", []) if line.startswith("License")]
    stated = (metadata.get("License") or "")[:100]  # some state the whole text
    return " ".join([metadata.get("License-Expression") or "", stated, *classifiers])


def test_every_licence_permits_the_use():
    licences = {name: licence_of(metadata) for name, metadata in installed_with_the_package().items()}
    assert len(licences) > 40
    for name, licence in licences.items():
        if name in WEAK_COPYLEFT:
            assert WEAK_COPYLEFT[name] in licence, name
        else:
            assert PERMISSIVE.search(licence), f"{name}: {licence}"
            assert not COPYLEFT.search(licence), f"{name}: {licence}"


def lower_bound(requirement):
    (bound,) = (found.version for found in requirement.specifier if found.operator == ">=")
    return bound


def test_the_oldest_versions_tested_are_the_lower_bounds():
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    needed, extras = declared()
    tests_too = [requirement for requirement in extras["test"] if requirement.name != "transformer-jax"]
    everything = (*needed, *extras["sweep"], *extras["serve"], *tests_too)
    bounds = {requirement.name: lower_bound(requirement) for requirement in everything}
    assert tested == bounds | {name: tested[name] for name in ("pyparsing",)}, "what needs it has a lower bound"


def test_extras_and_the_package_want_the_same_versions():
    needed, extras = declared()
    ranges = {requirement.name: requirement.specifier for requirement in needed}
    again = [requirement for lines in extras.values() for requirement in lines if requirement.name in ranges]
    assert {requirement.name for requirement in again} == {"jax", "etils"}
    assert [requirement for requirement in again if requirement.specifier != ranges[requirement.name]] == []


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
