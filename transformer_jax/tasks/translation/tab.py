"""The tab of translators: alternatives with their scores, and what each piece of a translation attends to."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformer_jax.plots.drawing import token_label
from transformer_jax.tasks.seq2seq_model import on_one_line
from transformer_jax.tasks.tab import Phrase, Tab, escape

if TYPE_CHECKING:
    from transformer_jax.tasks.translation.translator import Alignment, Translation

LARGEST_BEAM = 16
MOST_ALTERNATIVES = 8


class TranslationTab(Tab):
    """The tab of translators."""

    title = "translate"
    phrases: ClassVar[dict[str, Phrase]] = {
        "translate": Phrase("Translate", "翻译"),
        "ask": Phrase("Translate", "翻译"),
        "text": Phrase("Sentence", "原文"),
        "example": Phrase("One sentence", "输入一句话"),
        "beam": Phrase("Beam size", "束宽"),
        "alpha": Phrase("Length penalty (α)", "长度惩罚（α）"),
        "alternatives": Phrase("Alternatives", "候选译文数"),
        "source": Phrase("source", "原文"),
        "target": Phrase("translation", "译文"),
        "score": Phrase("log-probability over the length penalty", "对数概率除以长度惩罚"),
        "attention": Phrase(
            "Attention over the source, averaged over layers and heads: point at a token, or move with the arrow keys.",
            "对原文的注意力（各层各头的平均值）：将鼠标移到某个词元上，或用方向键切换。",
        ),
        "alignment": Phrase("Alignment", "对齐"),
        "weight": Phrase("weight", "权重"),
    }
    style = """
ol.alternatives { list-style: none; padding: 0; margin: 0; }
ol.alternatives > li { margin: 0 0 .6em; }
summary { cursor: pointer; overflow-wrap: anywhere; }
ol.alternatives > li > details > summary { font-size: 1.15em; }
.score { color: var(--body-text-color-subdued); font-size: .8em; font-variant-numeric: tabular-nums; margin-left: .5em;
         white-space: nowrap; }
.hint { color: var(--body-text-color-subdued); font-size: .85em; margin: .6em 0; }
.pieces { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; margin: .3em 0; }
.pieces .side { color: var(--body-text-color-subdued); font-size: .8em; width: 100%; }
.piece { padding: .15em .4em; border: 1px solid var(--border-color-primary); border-radius: 4px; cursor: default;
         background: rgb(56 132 220 / calc(var(--weight, 0) * 80%)); overflow-wrap: anywhere; }
.piece:focus-visible, .piece.pointed { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.told { min-height: 1.5em; font-size: .9em; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; margin: .4em 0; }
td, th { padding: .1em .8em .1em 0; text-align: left; font-variant-numeric: tabular-nums; font-weight: normal; }
th { color: var(--body-text-color-subdued); font-size: .85em; }
"""
    # The piece under the pointer or with the focus: the other side is shaded by its weights.
    script = """
const show = (piece) => {
  const view = piece.closest(".attention"), weights = JSON.parse(view.dataset.weights);
  const [side, place] = [piece.parentElement.dataset.side, Number(piece.dataset.place)];
  const found = [];
  for (const each of view.querySelectorAll(".piece")) {
    const other = Number(each.dataset.place), isOther = each.parentElement.dataset.side !== side;
    const weight = !isOther ? 0 : side === "target" ? weights[place][other] : weights[other][place];
    each.style.setProperty("--weight", Math.sqrt(weight / 1000));
    each.classList.toggle("pointed", each === piece);
    if (weight >= 50) found.push([weight, each.textContent]);
  }
  found.sort((a, b) => b[0] - a[0]);
  const arrow = side === "target" ? " \\u2190 " : " \\u2192 ";
  const told = found.slice(0, 4).map(([weight, text]) => `${text} ${(weight / 1000).toFixed(2)}`).join(", ");
  view.querySelector(".told").textContent = piece.textContent + arrow + told;
};
const of = (event) => event.target.closest && event.target.closest(".piece");
element.addEventListener("pointerover", (event) => { if (of(event)) show(of(event)); });
element.addEventListener("focusin", (event) => { if (of(event)) show(of(event)); });
element.addEventListener("keydown", (event) => {
  const piece = of(event), step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  const at = (place) => piece.parentElement.querySelector(`[data-place="${place}"]`);
  const next = piece && step && at(Number(piece.dataset.place) + step);
  if (!next) return;
  piece.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
});
"""

    def controls(self) -> Sequence[Any]:
        """Alternatives, beam and length penalty, as the first model has them."""
        import gradio

        decoding = next(iter(self.models.values())).settings.decoding
        beam = min(max(decoding.beam_size, 1), LARGEST_BEAM)
        return (
            gradio.Slider(1, MOST_ALTERNATIVES, 3, step=1, precision=0, label=self.label("alternatives")),
            gradio.Slider(1, LARGEST_BEAM, beam, step=1, precision=0, label=self.label("beam")),
            gradio.Slider(0, 2, min(max(decoding.alpha, 0), 2), step=0.1, precision=1, label=self.label("alpha")),
        )

    def answer(self, model: Any, text: str, *options: Any, language: str) -> str:
        """The best translations, with attention and alignment; a beam is at least as wide as they are many."""
        count, beam, alpha = options
        [found] = model.search(
            [on_one_line(text)], n_best=count, beam_size=max(beam, count), alpha=alpha, return_attention=True
        )
        items = "".join(
            f"<li><details{' open' * (rank == 0)}>{self._translation(each, language)}</details></li>"
            for rank, each in enumerate(found)
        )
        return f'<ol class="alternatives">{items}</ol>'

    def _translation(self, translation: "Translation", language: str) -> str:
        score = self.words("score", language)
        summary = (
            f'<summary><span class="text">{escape(translation.text)}</span>'
            f'<span class="score" title="{score}">{translation.score:.2f}</span></summary>'
        )
        return summary + ("" if translation.alignment is None else self._attention(translation.alignment, language))

    def _attention(self, alignment: "Alignment", language: str) -> str:
        weights = alignment.weights.mean(axis=(0, 1))  # [T, S]
        sides = {"target": alignment.target, "source": alignment.source}
        rows = "".join(_pieces(side, self.words(side, language), pieces) for side, pieces in sides.items())
        links = "".join(
            f"<tr><td>{_piece(piece)}</td><td>{_piece(alignment.source[row.argmax()])}</td><td>{row.max():.2f}</td></tr>"
            for piece, row in zip(alignment.target, weights, strict=True)
        )
        head = "".join(f'<th scope="col">{self.words(key, language)}</th>' for key in ("target", "source", "weight"))
        numbers = escape(json.dumps((1000 * weights).round().astype(int).tolist(), separators=(",", ":")))
        return (
            f'<div class="attention" data-weights="{numbers}">'
            f'<p class="hint">{self.words("attention", language)}</p>{rows}'
            f'<p class="told" aria-live="polite"></p>'
            f"<details><summary>{self.words('alignment', language)}</summary>"
            f'<table class="alignment"><thead><tr>{head}</tr></thead><tbody>{links}</tbody></table></details></div>'
        )


def _piece(piece: str) -> str:
    return escape(token_label(piece))


def _pieces(side: str, name: str, pieces: Sequence[str]) -> str:
    """A row of pieces; the Tab key goes to the first, from which the arrow keys move."""
    marked = "".join(
        f'<span class="piece" data-place="{place}" tabindex="{-min(place, 1)}">{_piece(piece)}</span>'
        for place, piece in enumerate(pieces)
    )
    return f'<div class="pieces" data-side="{side}"><span class="side">{name}</span>{marked}</div>'
