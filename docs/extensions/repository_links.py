"""Links that leave `docs/`, such as `../configs`, lead to the repository on the site, and work on GitHub as they are.

The address of the repository is `project.urls.Repository` of pyproject.toml, or that of the clone where Read the Docs
or GitHub builds the site. Without one, a link to a file offers a copy of the file, and a link to a folder becomes text.
Links that show the name of a page's file show its title instead.
"""

import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms import SphinxTransform

BRANCH = "main"


def repository_url(urls: dict[str, str], environment: dict[str, str]) -> str:
    """The address of the repository on the web, without a slash at its end; empty if it is not known.

    Args:
        urls: `project.urls` of pyproject.toml.
        environment: the environment variables.
    """
    url = urls.get("Repository") or environment.get("READTHEDOCS_GIT_CLONE_URL", "")
    if not url and "GITHUB_REPOSITORY" in environment:
        url = f"{environment.get('GITHUB_SERVER_URL', 'https://github.com')}/{environment['GITHUB_REPOSITORY']}"
    return url.rstrip("/").removesuffix(".git") if url.startswith("https://") else ""


class RepositoryLinks(SphinxTransform):
    """Resolves the links of a page that lead to files of the repository outside of the site's pages."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Replace each such link."""
        self._page = Path(self.env.doc2path(self.env.docname))
        # The notebooks are in a folder beside this one, to which docs/notebooks is a link.
        self._pages = {Path(self.env.doc2path(name)).resolve(): name for name in self.env.found_docs}
        repository = Path(self.env.srcdir).resolve().parent
        for node in list(self.document.findall(self._leaves_the_site)):
            target, anchor = self._target(node)
            if not target.exists() or not target.is_relative_to(repository):
                continue  # MyST names what does not exist
            if target in self._pages:
                replacement: nodes.Element = addnodes.pending_xref(
                    refdomain="doc", reftarget=self._pages[target], reftargetid=anchor or None, **self._origin(node)
                )
            elif url := self.config.repository_url:
                kind = "tree" if target.is_dir() else "blob"
                place = f"{url}/{kind}/{BRANCH}/{target.relative_to(repository).as_posix()}"
                replacement = nodes.reference(refuri=place + (f"#{anchor}" if anchor else ""), internal=False)
            elif target.is_dir():
                replacement = nodes.inline()
            else:
                path = os.path.relpath(target, self._page.parent)
                replacement = addnodes.download_reference(refdomain=None, reftarget=path, **self._origin(node))
            replacement.extend(node.children)
            node.replace_self(replacement)
        for node in self.document.findall(addnodes.pending_xref):
            page = Path(self.env.srcdir, f"{node['reftarget']}.md")
            if node.get("refdomain") == "doc" and node.astext() == page.name and page.exists():
                title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
                node.children = [nodes.inline("", title)]

    def _leaves_the_site(self, node: nodes.Node) -> bool:
        """Whether MyST made it of a path that is not a page of the site."""
        if not isinstance(node, (addnodes.download_reference, addnodes.pending_xref)) or node.get("reftype") != "myst":
            return False
        return not node["reftarget"].startswith("#") and node["reftarget"] not in self.env.found_docs

    def _target(self, node: nodes.Element) -> tuple[Path, str]:
        """The file or folder that a link names, and the anchor in it."""
        if node.get("refdomain") == "doc":  # a page, MyST believes: an absolute path without its suffix
            path, anchor = f"{Path(self.env.srcdir, node['reftarget'])}", node.get("reftargetid") or ""
            page = next((page for page in self._pages if str(page.with_suffix("")) == path), Path(f"{path}.md"))
            return page.resolve(), anchor
        path, _, anchor = node["reftarget"].partition("#")
        return (self._page.resolve().parent / path).resolve(), anchor

    def _origin(self, node: nodes.Element) -> dict[str, Any]:
        return {"refdoc": self.env.docname, "reftype": "myst", "refexplicit": node["refexplicit"]}


def _find(app: Sphinx, config: Config) -> None:
    if not config.repository_url:
        config.repository_url = repository_url(config.project_urls, dict(os.environ))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the transform."""
    app.add_config_value("repository_url", "", "env", str)
    app.add_config_value("project_urls", {}, "", dict)
    app.connect("config-inited", _find)
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
