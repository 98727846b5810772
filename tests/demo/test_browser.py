"""The page in headless Chromium, as visitors use it."""

import json
import shutil
from contextlib import ExitStack

import pytest

from tests.demo.served import serving, write_models
from transformer_jax.tasks.model_folder import load

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[demo]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if CHROMIUM is None or DRIVER is None:
    pytest.skip("there is no chromium with its chromedriver", allow_module_level=True)

PATIENCE = 300
"""Seconds, on a busy machine."""


class Visitor:
    """A browser at the page."""

    def __init__(self, address, *, width=1280, language="en-US"):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--accept-lang={language}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        metrics = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get(address)
        self.field()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def until(self, found):
        """Wait until a function finds something, and return that."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.driver, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda _: found())

    def shown(self, selector):
        """What a selector finds, once something of it is shown."""
        return self.until(lambda: [e for e in self.driver.find_elements("css selector", selector) if e.is_displayed()])

    def field(self):
        return self.shown(".asked textarea")[0]

    def press(self, *keys):
        """Press keys wherever the focus is."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, is_there):
        """Press Tab until a condition on the focused element, in JavaScript, holds."""
        for _ in range(40):
            if self.driver.execute_script(f"const e = document.activeElement; return {is_there}"):
                return
            self.press(webdriver.Keys.TAB)
        raise AssertionError(f"the Tab key does not lead to where {is_there}")

    def text(self, selector):
        return self.shown(selector)[0].text

    def fits(self):
        return self.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    def hosts(self):
        """Where anything was loaded from."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2] for url in urls if url.startswith(("http", "ws"))}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(folders):
    return {folder.name: load(folder) for folder in folders}


@pytest.fixture(scope="module")
def address(folders):
    # One translator, so that a model need not be chosen.
    with serving([folder for folder in folders if folder.name != "other"]) as found:
        yield found


@pytest.mark.parametrize(("width", "language"), [(1280, "en-US"), (360, "zh-CN")])
def test_from_text_to_answer_for_every_task(address, models, width, language):
    with Visitor(address, width=width, language=language) as visitor:
        said = {"en-US": ["Translate", "Classify", "Couplets"], "zh-CN": ["翻译", "分类", "对联"]}[language]
        assert [tab.text for tab in visitor.shown("button[role=tab]")] == said
        visitor.field().send_keys("cab ab")  # without the button
        [expected] = models["toy"].translate(["cab ab"], n_best=3, beam_size=3)
        visitor.until(lambda: visitor.text(".answer summary .text") == expected[0].text.strip())
        assert len(visitor.shown(".answer .alternatives > li")) == len(expected)
        assert visitor.fits()

        visitor.shown("button[role=tab]")[1].click()
        visitor.until(lambda: visitor.field().get_attribute("value") == "")
        visitor.field().send_keys("abc dad", webdriver.Keys.ENTER)
        best = models["classes"].classify(["abc dad"])[0].label
        visitor.until(lambda: visitor.text(".answer p.marked") == "abc dad")
        visitor.until(lambda: visitor.text(".answer tr.best .name") == best)
        assert visitor.fits()

        visitor.shown("button[role=tab]")[2].click()
        visitor.until(lambda: visitor.field().get_attribute("value") == "")
        visitor.field().send_keys("春风，山水")
        visitor.shown("button.ask")[0].click()
        [replies] = models["couplets"].search(["春风，山水"], n_best=3, beam_size=3)
        visitor.until(lambda: [e.text for e in visitor.shown(".answer .text")] == [reply.text for reply in replies])
        visitor.shown("button.copy")[1].click()
        visitor.until(lambda: visitor.shown("button.copy")[1].text in ("Copied", "已复制"))
        assert visitor.fits()
        assert visitor.hosts() == {address.removeprefix("http://")}
        assert [entry for entry in visitor.driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_what_is_too_long_says_so_and_stays(address):
    with Visitor(address) as visitor:
        visitor.field().send_keys("a" * 30)
        visitor.until(lambda: "The text has 31 tokens, but the limit is 20" in visitor.text("[role=alert]"))
        assert visitor.field().get_attribute("value") == "a" * 30
        visitor.field().send_keys(webdriver.Keys.BACKSPACE * 20)
        visitor.shown(".answer summary .text")
        visitor.until(lambda: not visitor.driver.find_elements("css selector", "[role=alert]"))


def test_two_visitors_at_once(address, models):
    with ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(address)) for _ in range(2)]
        texts = ["abc", "decade"]
        for visitor, text in zip(visitors, texts, strict=True):
            visitor.field().send_keys(text, webdriver.Keys.ENTER)
        for visitor, text in zip(visitors, texts, strict=True):
            [expected] = models["toy"].translate([text], n_best=3, beam_size=3)
            visitor.until(lambda v=visitor, e=expected: v.text(".answer summary .text") == e[0].text.strip())


def test_the_keyboard_alone(address):
    keys = webdriver.Keys
    with Visitor(address) as visitor:
        visitor.tab_to("e.matches('.asked textarea')")
        visitor.press("cab", keys.ENTER)
        visitor.shown(".answer .piece")
        visitor.tab_to("e.matches('button.label-wrap')")  # the options
        visitor.press(keys.SPACE)
        visitor.shown("input[type=range]")
        visitor.tab_to("e.matches('input[type=range]')")
        visitor.press(keys.ARROW_LEFT)  # one alternative less
        visitor.until(lambda: len(visitor.shown(".answer .alternatives > li")) == 2)
        visitor.tab_to("e.matches('.pieces[data-side=target] .piece')")
        visitor.press(keys.ARROW_RIGHT)
        place = "return document.activeElement.dataset.place"
        visitor.until(lambda: visitor.driver.execute_script(place) == "1")
        weights = "return [...document.querySelectorAll('.pieces[data-side=source] .piece')]"
        weights += ".map(each => Number(each.style.getPropertyValue('--weight')))"
        shades = visitor.driver.execute_script(weights)
        assert sum(shade**2 for shade in shades[:4]) == pytest.approx(1, abs=0.01), "the weights of a token add up to 1"
        visitor.shown("button[role=tab]")
        visitor.driver.execute_script("document.querySelector('button[role=tab]').focus()")
        visitor.tab_to("e.matches('button[role=tab]') && e.textContent.trim() === 'Couplets'")
        visitor.press(keys.ENTER)
        visitor.until(lambda: visitor.field().get_attribute("placeholder").startswith("An upper line"))
        visitor.tab_to("e.matches('.asked textarea') && e.placeholder.startsWith('An upper line')")
        visitor.press("春风", keys.ENTER)
        visitor.shown("button.copy")
        visitor.tab_to("e.matches('button.copy')")
        visitor.press(keys.ENTER)
        visitor.until(lambda: visitor.text("button.copy") == "Copied")
