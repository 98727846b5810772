"""The documentation as a site: it is built without a warning, and has all that it promises."""

import argparse
import html
import os
import re
import subprocess
import sys
import urllib.parse
import zlib
from pathlib import Path

import pytest

import transformer_jax
from tests.test_docs import DOCUMENTS, REPOSITORY, read
from transformer_jax import cli

pytest.importorskip("sphinx", reason="needs pip install -e '.[docs]'")
pytest.importorskip("myst_nb")
pytest.importorskip("furo")

DOCS = REPOSITORY / "docs"
ADDRESS = "https://example.org/me/transformer-jax"


def build(builder, out, *options):
    """Build the site, without the network; returns what Sphinx printed."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", builder, *options, str(DOCS), str(out)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("READTHEDOCS", "GITHUB"))}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def doctrees(tmp_path_factory):
    """What a second builder need not read again."""
    return tmp_path_factory.mktemp("doctrees")


@pytest.fixture(scope="module")
def site(tmp_path_factory, doctrees):
    out = tmp_path_factory.mktemp("site")
    build("html", out, "-d", str(doctrees), "-D", f"repository_url={ADDRESS}", "-D", "html_baseurl=https://docs.test/")
    return out


def text_of(page):
    """The text of a page, without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", read(page)))


@pytest.mark.slow
def test_llms_txt_lists_every_page(site):
    listed = re.findall(r"\]\(https://docs\.test/([^)]+)\): \S", read(site / "llms.txt"))
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert sorted(listed) == sorted(pages - {"index.html", "genindex.html", "search.html", "py-modindex.html"})


@pytest.mark.slow
def test_every_document_is_a_page(site):
    ours = [path.relative_to(DOCS).with_suffix(".html") for path in DOCUMENTS if path.is_relative_to(DOCS)]
    assert [path for path in ours if not (site / path).is_file()] == []


@pytest.mark.slow
def test_every_public_name_is_documented(site):
    _, _, compressed = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    known = {line.split(" ")[0] for line in zlib.decompress(compressed).decode().splitlines() if " py:" in line}
    assert [name for name in transformer_jax.__all__ if f"transformer_jax.{name}" not in known] == []
    assert "transformer_jax.Translator.score" in known  # inherited


@pytest.mark.slow
def test_types_of_arrays_are_shown_as_the_source_has_them(site):
    attention, search = (text_of(site / "api" / f"{name}.html") for name in ("attention", "search"))
    assert "query: Float[Array, 'B T N H']" in attention
    assert "processors: Sequence[LogitsProcessor] = ()" in search
    assert "Ranking scores: log-probability" in search
    for page in (site / "api").glob("*.html"):
        assert re.findall(r"jaxlib\._jax|Annotated\[|\*args: Any, \*\*kwargs", text_of(page)) == []


@pytest.mark.slow
def test_every_command_has_its_options(site):
    shown = text_of(site / "commands.html")
    sections = {name: shown.partition(f"\n{name}¶")[2].partition("¶")[0] for name in cli._parser().commands}
    for name, parser in cli._parser().commands.items():
        actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        assert [each for action in actions for each in action.option_strings if each not in sections[name]] == []


@pytest.mark.slow
def test_links_to_the_source_lead_to_the_repository(site):
    found = {link for page in site.rglob("*.html") for link in re.findall(rf'href="{ADDRESS}/([^"#]+)', read(page))}
    assert {"blob/main/transformer_jax/nn/attention.py", "tree/main/configs", "blob/main/CHANGELOG.md"} <= found
    for link in found:
        kind, _, path = link.split("/", 2)
        assert (REPOSITORY / path).is_dir() if kind == "tree" else (REPOSITORY / path).is_file()


@pytest.mark.slow
def test_links_within_the_site_resolve(site):
    pages = {path: read(path) for path in site.rglob("*.html")}
    anchors = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for page, text in pages.items():
        body = text.partition("<article")[2].partition("</article>")[0]
        for link in re.findall(r'href="([^"]+)"', body):
            path, _, anchor = html.unescape(link).partition("#")
            if re.match(r"[a-z]+:", path):
                continue
            target = Path(os.path.normpath(page.parent / urllib.parse.unquote(path))) if path else page
            assert target.is_file(), (page, link)
            assert not anchor or urllib.parse.unquote(anchor) in anchors[target], (page, link)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    for name in ("index.html", "api/attention.html", "zh/index.html"):
        assert (
            re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://(?!docs\.test)[^"]*"', read(site / name)) == []
        )


@pytest.mark.slow
def test_pages_name_their_language(site):
    assert '<html class="no-js" lang="en"' in read(site / "index.html")
    assert '<html class="no-js" lang="zh-CN"' in read(site / "zh" / "own_data.html")


@pytest.mark.slow
def test_links_are_checked_by_sphinx_too(site, doctrees, tmp_path):
    build("linkcheck", tmp_path, "-d", str(doctrees), "-D", f"repository_url={ADDRESS}")
    assert " working " not in read(tmp_path / "output.txt")  # no address was asked for


@pytest.mark.slow
def test_without_an_address_links_offer_a_copy(tmp_path):
    docs = tmp_path / "repository" / "docs"
    docs.mkdir(parents=True)
    (docs.parent / "program.py").write_text("x = 1\n", encoding="utf-8")
    (docs / "index.md").write_text(
        "# A\n\n[file](../program.py), [folder](../docs/../..//repository)\n", encoding="utf-8"
    )
    (docs / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / 'extensions')!r})\nextensions = ['myst_nb', 'repository_links']\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(docs), str(tmp_path / "out")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("READTHEDOCS", "GITHUB"))}
    subprocess.run(command, check=True, env=environment)
    page = read(tmp_path / "out" / "index.html")
    [copy] = re.findall(r'href="(_downloads/[^"]+)"', page)
    assert read(tmp_path / "out" / copy) == "x = 1\n"
    assert ">folder</a>" not in page


@pytest.mark.parametrize(
    ("urls", "environment", "expected"),
    [
        ({"Repository": "https://a.org/x/"}, {"READTHEDOCS_GIT_CLONE_URL": "https://b.org/y.git"}, "https://a.org/x"),
        ({}, {"READTHEDOCS_GIT_CLONE_URL": "https://b.org/y.git"}, "https://b.org/y"),
        ({}, {"READTHEDOCS_GIT_CLONE_URL": "git@b.org:y.git"}, ""),
        ({}, {"GITHUB_SERVER_URL": "https://c.org", "GITHUB_REPOSITORY": "u/z"}, "https://c.org/u/z"),
        ({}, {}, ""),
    ],
)
def test_the_address_of_the_repository(urls, environment, expected, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    from repository_links import repository_url

    assert repository_url(urls, environment) == expected
