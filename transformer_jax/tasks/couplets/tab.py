"""The tab of couplet models: lower lines to choose from, each with a table of where it keeps the rules."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformer_jax.tasks.couplets.rules import HARD, NAMES, OFF, Rules, Verdict, characters, judge, tone_sign
from transformer_jax.tasks.couplets.sources import without_spaces
from transformer_jax.tasks.seq2seq_model import on_one_line
from transformer_jax.tasks.tab import Phrase, Tab, escape

if TYPE_CHECKING:
    from transformer_jax.tasks.couplets.generate import Reply

MOST_REPLIES = 10


class CoupletTab(Tab):
    """The tab of couplet models."""

    title = "couplet"
    answers_while_typing = False  # which would be in the middle of a character
    phrases: ClassVar[dict[str, Phrase]] = {
        "couplet": Phrase("Couplets", "对联"),
        "ask": Phrase("Write lower lines", "对下联"),
        "text": Phrase("Upper line", "上联"),
        "example": Phrase("An upper line in Chinese", "输入上联"),
        "count": Phrase("Lower lines", "下联数量"),
        "length": Phrase("Length: as many characters", "字数：上下联字数相等"),
        "punctuation": Phrase("Punctuation: at the same places", "标点：位置与上联相同"),
        "repetition": Phrase("Repetition: at the same places", "重字：重复的位置与上联相同"),
        "distinct": Phrase("Distinct: no character of the upper line", "避重：不用上联用过的字"),
        "tones": Phrase("Tones: level against oblique (平仄)", "平仄：关键位置平仄相对"),
        "upper": Phrase("upper line", "上联"),
        "lower": Phrase("lower line", "下联"),
        "tone": Phrase("tone", "平仄"),
        "kept": Phrase("kept", "符合"),
        "rules kept": Phrase("{} of {} rules kept", "符合 {} 条规则（共 {} 条）"),
        "broken": Phrase("broken", "不符"),
        "given up": Phrase("broken, given up: no line can keep it", "不符，已放弃：任何下联都无法满足"),
        "ends level": Phrase(
            "The upper line ends level (平), but should end oblique (仄).", "上联末字为平声，按惯例应为仄声。"
        ),
        "unknown": Phrase("The model knows only {:.0%} of these characters.", "模型只认识其中 {:.0%} 的字。"),
        "score": Phrase(
            "log-probability, less the penalties of weighted rules, over the length penalty",
            "对数概率减去加权规则的罚分，再除以长度惩罚",
        ),
        "copy": Phrase("Copy", "复制"),
        "copied": Phrase("Copied", "已复制"),
    }
    style = """
section { margin: 0 0 1.2em; }
.line { display: flex; flex-wrap: wrap; gap: .3em .8em; align-items: center; }
.text { font-size: 1.35em; overflow-wrap: anywhere; }
.score { color: var(--body-text-color-subdued); font-size: .85em; font-variant-numeric: tabular-nums; }
button { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: .15em .7em; cursor: pointer;
         background: var(--button-secondary-background-fill); color: inherit; }
button:focus-visible, .scroll:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.scroll { overflow-x: auto; }
summary { cursor: pointer; }
table { border-collapse: collapse; margin: .3em 0; white-space: nowrap; }
td, th { padding: .1em .2em; text-align: center; font-weight: normal; min-width: 1.5em; }
th { text-align: left; color: var(--body-text-color-subdued); font-size: .85em; padding-right: .8em; }
td.remark { text-align: left; padding-left: .8em; font-size: .85em; }
td.broken { background: rgb(222 80 60 / 35%); }
tr.letters td { font-size: 1.1em; }
p.hint { color: var(--body-text-color-subdued); font-size: .85em; margin: .4em 0; }
"""
    # Browsers offer the clipboard to pages from this machine or over HTTPS alone; elsewhere the line is selected.
    script = """
element.addEventListener("click", async (event) => {
  const button = event.target.closest && event.target.closest("button.copy");
  if (!button) return;
  const line = button.closest("section").querySelector(".text");
  try {
    await navigator.clipboard.writeText(line.textContent);
    button.textContent = button.dataset.copied;
  } catch {
    getSelection().selectAllChildren(line);
    if (document.execCommand("copy")) button.textContent = button.dataset.copied;
  }
});
"""

    def controls(self) -> Sequence[Any]:
        """The number of lines, and a switch for each rule."""
        import gradio

        rules = Rules.parse(next(iter(self.models.values())).settings.rules)
        return (
            gradio.Slider(1, MOST_REPLIES, 3, step=1, precision=0, label=self.label("count")),
            *(gradio.Checkbox(getattr(rules, name) != OFF, label=self.label(name)) for name in NAMES),
        )

    def answer(self, model: Any, text: str, *options: Any, language: str) -> str:
        """The best lower lines. A rule that is on has the model's weight or, without one, is hard."""
        count, *switches = options
        own = Rules.parse(model.settings.rules)
        rules = Rules(
            **{
                name: (getattr(own, name) or HARD) if is_on else OFF
                for name, is_on in zip(NAMES, switches, strict=True)
            }
        )
        upper = without_spaces(on_one_line(text))
        beam = max(model.settings.decoding.beam_size, count)
        [replies] = model.search([upper], rules=rules, n_best=count, beam_size=beam)
        notes = []
        if (share := model.known_share(upper)) < 1:
            notes.append(self.phrase("unknown", language).format(share))
        if judge(upper, upper).upper_ends_level:
            notes.append(self.phrase("ends level", language))
        shown = "".join(f'<p class="hint">{escape(note)}</p>' for note in notes)
        return shown + "".join(self._reply(upper, reply, rank == 0, language) for rank, reply in enumerate(replies))

    def _reply(self, upper: str, reply: "Reply", is_open: bool, language: str) -> str:
        verdict = judge(upper, reply.text)
        kept = escape(self.phrase("rules kept", language).format(len(verdict.kept), len(NAMES)))
        return (
            f'<section><div class="line"><span class="text" lang="zh">{escape(reply.text)}</span>'
            f'<span class="score" title="{self.words("score", language)}">{reply.score:.2f}</span>'
            f'<button type="button" class="copy" data-copied="{self.words("copied", language)}">'
            f"{self.words('copy', language)}</button></div>"
            f"<details{' open' * is_open}><summary>{kept}</summary>"
            f'<div class="scroll" tabindex="0">{self._table(upper, reply, verdict, language)}</div></details></section>'
        )

    def _table(self, upper: str, reply: "Reply", verdict: Verdict, language: str) -> str:
        """The lines above each other with their tones, and × at each place that breaks a rule."""
        above, below = characters(upper), characters(reply.text)
        places = range(max(len(above), len(below)))
        rows = []
        for key, line in (("upper", above), ("lower", below)):
            rows.append(self._row(key, [(each, "") for each in line], "", places, language, "letters"))
            rows.append(self._row("tone", [(tone_sign(each), "") for each in line], "", places, language, ""))
        for name in NAMES:
            broken = verdict.broken[name]
            remark = "kept" if not broken else "given up" if name in reply.gave_up else "broken"
            cells = [("×", "broken") if place in broken else ("·", "") for place in places]
            rows.append(self._row(name, cells, remark, places, language, f"rule {name}"))
        return f"<table>{''.join(rows)}</table>"

    def _row(self, key: str, cells: list[tuple[str, str]], remark: str, places: range, language: str, kind: str) -> str:
        filled = cells + [("", "")] * (len(places) - len(cells))
        marked = "".join(f'<td class="{style}">{escape(cell)}</td>' for cell, style in filled)
        # The name of a rule stands before what it says.
        name = escape(self.phrase(key, language).partition(":")[0].partition("：")[0])
        said = self.words(remark, language) if remark else ""
        return f'<tr class="{kind}"><th scope="row">{name}</th>{marked}<td class="remark">{said}</td></tr>'
