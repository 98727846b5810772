"""A tab of the page of `transformer-jax demo`: what those of all tasks share.

A model class with an attribute `tab`, such as `Translator.tab`, has one. Gradio, which is optional, is imported when a
tab is built.
"""

import abc
import html
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from transformer_jax.data.readers import is_blank
from transformer_jax.system import LineError, UserError

MOST_CHARACTERS = 20_000
"""Of a text, whatever the model accepts: each key that is pressed sends the whole text."""


class Phrase(NamedTuple):
    """Words of the page in its two languages."""

    english: str
    chinese: str

    def of(self, language: str) -> str:
        """The phrase in the language of a tag such as `zh-CN`: Chinese, or else English."""
        return self.chinese if is_chinese(language) else self.english


def is_chinese(language: str) -> bool:
    """Whether a language tag, or the first one of an `Accept-Language` header, is one of Chinese."""
    return language.strip().lower().split("-")[0].split(",")[0].split(";")[0] == "zh"


class Answer(NamedTuple):
    """What the page shows after a request: one of the two is empty, or both are."""

    content: str = ""
    """HTML."""
    message: str = ""
    """HTML: why there is no answer."""


_TEMPLATE = str.maketrans({mark: f"&#{ord(mark)};" for mark in "{}$`\\"})


def escape(text: str) -> str:
    """Text as HTML, also within an attribute; Gradio's templates leave it as it is."""
    return html.escape(text).translate(_TEMPLATE)


class Tab(abc.ABC):
    """The tab of models that are used in the same way; a subclass for each way.

    The page is written in both languages. Gradio shows those `phrases` that `label` names in the browser's; an answer
    is in the one that the request names.
    """

    title: ClassVar[str]
    """The key of the phrase that names the tab."""
    phrases: ClassVar[Mapping[str, Phrase]]
    """Its own phrases, with `text` and `example` for the field, and `ask` for the button; the shared ones are added."""
    style: ClassVar[str]
    """CSS of answers; Gradio confines it to them."""
    script: ClassVar[str | None] = None
    """JavaScript that runs once, with `element`, in which answers are shown."""
    answers_while_typing: ClassVar[bool] = True
    """Whether it can answer as one types."""

    _SHARED: ClassVar[dict[str, Phrase]] = {
        "model": Phrase("Model", "模型"),
        "live": Phrase("Answer as I type", "边输入边显示结果"),
        "options": Phrase("Options", "选项"),
        "refused": Phrase("This can't be done:", "无法处理："),
    }

    def __init__(self, models: Mapping[str, Any]) -> None:
        """Make the tab of models of its kind, at least one, by the names that visitors see."""
        self.models = dict(models)

    @classmethod
    def all_phrases(cls) -> dict[str, Phrase]:
        """Its phrases by key, those that all tabs share among them."""
        return cls._SHARED | dict(cls.phrases)

    @classmethod
    def phrase(cls, key: str, language: str) -> str:
        """A phrase in the language of a request."""
        return cls.all_phrases()[key].of(language)

    @classmethod
    def words(cls, key: str, language: str) -> str:
        """A phrase in the language of a request, as HTML."""
        return escape(cls.phrase(key, language))

    @classmethod
    def label(cls, key: str) -> Any:
        """A phrase for a label, in the language of the browser."""
        from gradio.i18n import I18nData

        return I18nData(cls.key(key))

    @classmethod
    def key(cls, key: str) -> str:
        """The key of a phrase among those of all tabs."""
        return f"{cls.title}.{key}"

    @abc.abstractmethod
    def controls(self) -> Sequence[Any]:
        """Make the components with the options, whose values come to `answer`."""

    @abc.abstractmethod
    def answer(self, model: Any, text: str, *options: Any, language: str) -> str:
        """The answer to a text, which is not blank, as HTML.

        Args:
            model: one of the models.
            text: as typed.
            options: the values of the controls.
            language: of the visitor, as in `Phrase.of`.

        Raises:
            UserError: if the model refuses the text, or an option is out of range.
        """

    def respond(self, name: str, text: str, *options: Any, language: str) -> Answer:
        """The answer of the model of this name, or the reason why there is none."""
        try:
            if is_blank(text):
                return Answer()
            if len(text) > MOST_CHARACTERS:
                limit = f"{MOST_CHARACTERS:,}"
                raise UserError(f"The text has {len(text):,} characters, but the limit here is {limit}; shorten it.")
            return Answer(content=self.answer(self.models[name], text, *options, language=language))
        except UserError as error:
            # There is but one text, which needs no number.
            sentence = f"The text {error.reason}" if isinstance(error, LineError) else str(error)
            refused = self.words("refused", language)
            return Answer(message=f'<p role="alert">{refused} <span lang="en">{escape(sentence)}</span></p>')

    def build(self) -> None:
        """Make its components, within those of Gradio that are open."""
        import gradio

        names = list(self.models)
        with gradio.Column():
            name = gradio.Dropdown(names, value=names[0], label=self.label("model"), visible=len(names) > 1)
            text = gradio.Textbox(
                label=self.label("text"), placeholder=self.label("example"), lines=1, max_lines=8, elem_classes="asked"
            )
            message = gradio.HTML(elem_classes="message")
            button = gradio.Button(self.label("ask"), variant="primary", elem_classes="ask")
            live = gradio.Checkbox(True, label=self.label("live"), visible=self.answers_while_typing)
            with gradio.Accordion(self.label("options"), open=False):
                options = list(self.controls())
        content = gradio.HTML(
            elem_classes="answer",
            css_template=self.style,
            js_on_load=self.script,
            apply_default_css=False,
            min_height=40,
        )

        def respond(request: gradio.Request, *values: Any) -> Answer:
            return self.respond(*values, language=request.headers.get("accept-language", ""))

        def respond_live(request: gradio.Request, is_live: bool, *values: Any) -> Any:
            return respond(request, *values) if is_live else (gradio.skip(), gradio.skip())

        asked, shown = [name, text, *options], [content, message]
        asking = gradio.on(
            [button.click, text.submit],
            respond,
            asked,
            shown,
            api_visibility="private",
            show_progress="minimal",
            concurrency_id=self.title,
        )
        if self.answers_while_typing:
            gradio.on(
                # Not text.input, which comes with keys that print alone, and not with pasting or deleting.
                [text.change, name.change, *(option.change for option in options)],
                respond_live,
                [live, *asked],
                shown,
                # One at a time for each visitor, and then the last text: what was typed meanwhile is passed over.
                trigger_mode="always_last",
                api_visibility="private",
                show_progress="hidden",
                concurrency_id=self.title,
                cancels=[asking],  # an answer to an earlier text must not come last
            )
