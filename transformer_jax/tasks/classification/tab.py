"""The tab of classifiers: probabilities as bars, and the words that mattered, marked in the text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformer_jax.tasks.tab import Phrase, Tab, escape

if TYPE_CHECKING:
    from transformer_jax.tasks.classification.text_classifier import Classification, WordEffect

MOST_LISTED = 8
"""Words listed with their effects."""


class ClassificationTab(Tab):
    """The tab of classifiers."""

    title = "classify"
    phrases: ClassVar[dict[str, Phrase]] = {
        "classify": Phrase("Classify", "分类"),
        "ask": Phrase("Classify", "分类"),
        "text": Phrase("Text", "文本"),
        "example": Phrase("A text to classify", "输入要分类的文本"),
        "explain": Phrase("Mark the words that mattered", "标出影响分类的词"),
        "class": Phrase("class", "类别"),
        "probability": Phrase("probability", "概率"),
        "words": Phrase("Words that speak for {}, and against it", "支持与反对“{}”的词"),
        "effect": Phrase(
            "Effect: by how much the log-odds of the class, in nats, fall without the word",
            "影响：去掉该词后，此类别的对数几率下降多少（单位：奈特）",
        ),
        "word": Phrase("word", "词"),
        "how much": Phrase("effect", "影响"),
        "cut": Phrase(
            "The model reads only the first {:,} tokens of this text.", "模型只读取这段文本的前 {:,} 个词元。"
        ),
    }
    style = """
table { border-collapse: collapse; width: 100%; }
td, th { padding: .2em .6em .2em 0; text-align: left; font-weight: normal; font-variant-numeric: tabular-nums; }
th { color: var(--body-text-color-subdued); font-size: .85em; }
tr.best td:first-child { font-weight: 600; }
th:last-child { text-align: right; padding-right: 0; }
td.name { overflow-wrap: anywhere; width: 30%; }
td.number { width: 5em; text-align: right; padding-right: 0; }
.bar { background: var(--border-color-primary); border-radius: 4px; overflow: hidden; }
.bar > div { height: 1em; min-width: 1px; background: rgb(56 132 220); border-radius: 4px; }
p { overflow-wrap: anywhere; }
p.hint { color: var(--body-text-color-subdued); font-size: .85em; margin: .8em 0 .3em; }
p.marked { white-space: pre-wrap; line-height: 1.9; }
mark { color: inherit; border-radius: 3px; padding: .1em .15em; }
mark.for { background: rgb(56 132 220 / calc(var(--share) * 70%)); border-bottom: 2px solid rgb(56 132 220); }
mark.against { background: rgb(222 122 40 / calc(var(--share) * 70%)); border-bottom: 2px dashed rgb(222 122 40); }
table.effects { width: auto; }
table.effects td:last-child { text-align: right; padding-right: 0; }
"""

    def controls(self) -> Sequence[Any]:
        """Whether words are marked."""
        import gradio

        return (gradio.Checkbox(True, label=self.label("explain")),)

    def answer(self, model: Any, text: str, *options: Any, language: str) -> str:
        """The probability of each class, the likeliest first, and the text with its words marked."""
        (explains,) = options
        [found] = model.classify([text], explain=explains)
        cut = escape(self.phrase("cut", language).format(model.settings.max_length))
        note = f'<p class="hint cut">{cut}</p>' if model.is_cut(text) else ""
        return note + self._bars(found, language) + ("" if not found.words else self._words(text, found, language))

    def _bars(self, found: "Classification", language: str) -> str:
        ordered = sorted(found.probabilities.items(), key=lambda each: -each[1])
        rows = "".join(
            f'<tr class="{"best" if rank == 0 else ""}"><td class="name">{escape(name)}</td>'
            f'<td><div class="bar"><div style="width: {100 * probability:.2f}%"></div></div></td>'
            f'<td class="number">{probability:.2%}</td></tr>'
            for rank, (name, probability) in enumerate(ordered)
        )
        head = f"<th>{self.words('class', language)}</th><th></th>"
        head += f"<th>{self.words('probability', language)}</th>"
        return f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def _words(self, text: str, found: "Classification", language: str) -> str:
        words = found.words or []
        largest = max(abs(word.effect) for word in words) or 1.0
        parts, end = [], 0
        for word in words:
            parts += [escape(text[end : word.start]), _marked(word, largest)]
            end = word.start + len(word.text)
        parts.append(escape(text[end:]))
        listed = sorted(words, key=lambda word: -abs(word.effect))[:MOST_LISTED]
        rows = "".join(f"<tr><td>{escape(word.text)}</td><td>{word.effect:+.2f}</td></tr>" for word in listed)
        head = f"<th>{self.words('word', language)}</th><th>{self.words('how much', language)}</th>"
        return (
            f'<p class="hint">{escape(self.phrase("words", language).format(found.label))}</p>'
            f'<p class="marked">{"".join(parts)}</p>'
            f'<table class="effects"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
            f'<p class="hint">{self.words("effect", language)}</p>'
        )


def _marked(word: "WordEffect", largest: float) -> str:
    """A word, shaded by its effect; a whole line below is for, a dashed one against."""
    kind = "for" if word.effect >= 0 else "against"
    share = abs(word.effect) / largest
    if share < 0.05:
        return escape(word.text)
    return f'<mark class="{kind}" style="--share: {share:.2f}" title="{word.effect:+.2f}">{escape(word.text)}</mark>'
