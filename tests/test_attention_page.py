"""The page of attention: its data, that it loads nothing, and the lines that its script draws."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from transformer_jax import plots

SOURCE, TARGET = ["▁ein", "▁Haus", "</s>"], ["a", " ", "house", "</s>"]
CHINESE = list("春江明月降，秋水碧天高")
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.dirichlet(np.ones(3), size=(2, 3, 4))  # layers, heads, T, S
KINDS = {
    "cross": WEIGHTS,
    "encoder": RANDOM.dirichlet(np.ones(3), size=(2, 3, 3)),
    "decoder": np.tril(np.ones((2, 3, 4, 4))),
}
EXAMPLES = [
    plots.AttentionExample(SOURCE, TARGET, KINDS),
    plots.AttentionExample(CHINESE, CHINESE, {"cross": np.full((1, 1, 11, 11), 0.25)}),
]


class Page(html.parser.HTMLParser):
    """Contents of the scripts of a page, by type, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.loads, self.within = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        self.within = attributes.get("type", "text/javascript") if tag == "script" else None

    def handle_data(self, data):
        if self.within:
            self.scripts[self.within] = self.scripts.get(self.within, "") + data

    def handle_endtag(self, tag):
        self.within = None


def test_the_page_has_all_weights_and_loads_nothing():
    text = plots.attention_page(EXAMPLES, title="</script><b>")
    page = Page(text)
    assert page.loads == []
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    data = json.loads(page.scripts["application/json"])
    assert data["title"] == "</script><b>"
    first, second = data["examples"]
    assert (first["source"], first["target"]) == (["_ein", "_Haus", "</s>"], ["a", "␣", "house", "</s>"])
    assert first["output so far"] == ["<s>", "a", "␣", "house"]
    for kind, weights in KINDS.items():
        np.testing.assert_allclose(np.array(first["kinds"][kind]["weights"]) / 1000, weights, atol=0.5e-3)
    assert second["source"] == CHINESE
    with pytest.raises(ValueError, match="no attention"):
        plots.attention_page([])
    with pytest.raises(ValueError, match="'self' is no kind of attention"):
        plots.attention_page([plots.AttentionExample(SOURCE, SOURCE, {"self": WEIGHTS})])


BROWSER = """
class Node {
  constructor(name) { this.name = name; this.children = []; this.attributes = {}; this.style = {}; this.on = {}; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  append(...nodes) { this.children.push(...nodes); }
  replaceChildren(...nodes) { this.children = nodes; }
  addEventListener(name, call) { this.on[name] = call; }
  all(name) { return this.children.flatMap(each => [...(each.name === name ? [each] : []), ...each.all(name)]); }
}
const nodes = {}, windowOn = {}, make_node = name => nodes[name] ??= new Node(name);
globalThis.document = {
  getElementById: make_node, querySelector: make_node,
  createElement: name => new Node(name), createElementNS: (_, name) => new Node(name), body: {clientWidth: 1280},
};
globalThis.addEventListener = (name, call) => { windowOn[name] = call; };
make_node("data").textContent = require("fs").readFileSync(process.argv[2], "utf8");
"""
ACTIONS = """
const report = [];
const look = () => report.push({
  width: Number(nodes.view.attributes.width), lines: nodes.view.all("line").map(line => line.attributes),
  weights: nodes.view.all("text").filter(text => text.attributes.class === "weight").map(text => text.textContent),
});
look();
point({side: 0, place: 1}); look();
nodes.heads.children[0].on.click(); nodes.layer.on.change({target: {value: "1"}}); look();
nodes.heads.children[2].on.dblclick(); look();
nodes.text.on.change({target: {value: "1"}}); look();
document.body.clientWidth = 340; windowOn.resize(); look();
console.log(JSON.stringify(report));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed, which runs the script of the page")
def test_the_page_draws_the_weights(tmp_path):
    page = Page(plots.attention_page(EXAMPLES))
    (tmp_path / "data.json").write_text(page.scripts["application/json"], encoding="utf-8")
    (tmp_path / "page.js").write_text(BROWSER + page.scripts["text/javascript"] + ACTIONS, encoding="utf-8")
    ran = subprocess.run(
        ["node", tmp_path / "page.js", tmp_path / "data.json"], capture_output=True, text=True, check=True
    )
    everything, pointed, layer, alone, other, narrow = json.loads(ran.stdout)

    def opacities(weights):
        return sorted(round(w, 3) for w in np.round(weights, 3).ravel() if round(w, 3) >= 0.01)

    def drawn(looked):
        return sorted(float(line["stroke-opacity"]) for line in looked["lines"])

    assert drawn(everything) == pytest.approx(opacities(WEIGHTS[0]))
    assert drawn(pointed) == pytest.approx([0.25 + 0.75 * w for w in opacities(WEIGHTS[0][:, 1])], abs=1e-3)
    assert pointed["weights"] == [f"{w:.2f}" for w in WEIGHTS[0][:, 1].round(3).mean(axis=0)]
    assert drawn(layer) == pytest.approx(opacities(WEIGHTS[1][1:]))
    assert drawn(alone) == pytest.approx(opacities(WEIGHTS[1][2]))
    assert drawn(other) == [0.25] * 121
    assert drawn(narrow) == drawn(other)
    assert narrow["width"] <= 340 < other["width"]
