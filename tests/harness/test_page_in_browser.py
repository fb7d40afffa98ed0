"""The page in a headless Chromium: filters, search, paging, two results side by side, groups, formulas, hostile texts.

It takes `pip install playwright` and a chromium in PATH (or playwright's own); without them these tests are skipped.
After each test the browser's console must be empty.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import page, page_data

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
expect = playwright.expect
EVIL = '</script><script>document.title="hurt"</script><img src=x onerror=\'document.title="hurt"\'>'
PHONE, DESK = 400, 1400


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            found = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no chromium to test with: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def blank(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A page whose functions can be called, for all tests of them."""
    path = tmp_path_factory.mktemp("blank") / "page.html"
    page.write_evaluation({"sums": sums(1)}, path)
    tab = browser.new_page()
    tab.goto(path.as_uri())
    return tab


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function that opens a file of this test; afterwards nothing may have been complained of or asked for."""
    complaints: list[str] = []
    contexts = []

    def open_page(name: str, width: int = DESK, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        tab.goto((tmp_path / name).as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def row(n: int, rewards: list[float], **more: Any) -> dict[str, Any]:
    texts = [f"Thinking of {n}. So it is \\boxed{{{n + (reward == 0)}}}" for reward in rewards]
    extracted = [str(n + (reward == 0)) for reward in rewards]
    told = {"lengths": [10 + n] * len(rewards), "truncated": [False] * len(rewards), "extracted": extracted}
    return {"id": f"q{n}", "problem": f"Which number is {n}?", "answer": str(n), "texts": texts, "rewards": rewards,
            "read": extracted, "level": 1 + n % 3, "subject": ("algebra", "logic")[n % 2], **told, **more}  # fmt: skip


def sums(count: int = 45) -> dict[str, Any]:
    """Questions of two answers: every third wrong throughout, every fifth half right; two are special."""
    rows = [row(n, [0.0, 0.0] if n % 3 == 0 else [1.0, 0.0] if n % 5 == 0 else [1.0, 1.0]) for n in range(count)]
    if count > 30:
        rows[7] |= {"truncated": [False, True], "extracted": ["7", None], "read": ["7", None]}
        rows[30]["texts"][1] += " The Quokka \\emph{said} so."
    return {"questions": count, "rows": rows, "max_new_tokens": 64, "accuracy": 0.6, "settings": {"model": "ours"}}


@pytest.fixture
def evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Its page is of many blocks, so that questions of a page of the list lie in several."""
    monkeypatch.setattr(page_data, "BLOCK", 2_000)
    result = sums()
    page.write_evaluation({"sums": result}, tmp_path / "page.html")
    return result


def status(tab: Any, text: str) -> None:
    expect(tab.locator("p[role=status]")).to_have_text(text)


def shown(tab: Any) -> list[int]:
    """The numbers of the questions on this page of the list."""
    return [int(text.partition(" ")[0][1:]) - 1 for text in tab.locator(".about").all_text_contents()]


# ---------------------------------------------------------------------------------------------------------------------
# The list of questions
# ---------------------------------------------------------------------------------------------------------------------


def test_paging_goes_through_all_questions(evaluation, opened):
    tab = opened("page.html")
    status(tab, "45 questions, 1 to 20 shown")
    assert shown(tab) == list(range(20)) and tab.locator("button", has_text="previous").first.is_disabled()
    assert tab.locator(".problem").all_text_contents() == [f"Which number is {n}?" for n in range(20)]
    tab.locator("button", has_text="next").last.click()
    status(tab, "45 questions, 21 to 40 shown")
    tab.locator("button", has_text="next").first.click()
    status(tab, "45 questions, 41 to 45 shown")
    assert shown(tab) == list(range(40, 45)) and tab.locator("button", has_text="next").first.is_disabled()
    tab.get_by_label("page", exact=True).first.fill("2")
    tab.get_by_label("page", exact=True).first.press("Enter")
    status(tab, "45 questions, 21 to 40 shown")


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("wrong", lambda row: 0.0 in row["rewards"]),
        ("never", lambda row: 1.0 not in row["rewards"]),
        ("always", lambda row: 0.0 not in row["rewards"]),
        ("truncated", lambda row: True in row["truncated"]),
        ("no-answer", lambda row: None in row["extracted"]),
    ],
)
def test_a_filter_shows_what_it_says(name, passes, evaluation, opened):
    expected = [n for n, each in enumerate(evaluation["rows"]) if passes(each)]
    tab = opened("page.html")
    status(tab, "45 questions, 1 to 20 shown")
    tab.get_by_label("show").select_option(name)
    status(tab, f"{len(expected)} question{'s' * (len(expected) > 1)}, 1 to {min(20, len(expected))} shown")
    assert shown(tab) == expected[:20]
    assert f"({len(expected)})" in tab.locator(f"option[value={name}]").text_content()


def test_level_subject_and_filter_go_together(evaluation, opened):
    expected = [n for n in range(45) if n % 3 == 0 and n % 2 == 1]
    tab = opened("page.html")
    tab.get_by_label("level").select_option(label="1")
    tab.get_by_label("subject").select_option(label="logic")
    tab.get_by_label("show").select_option("never")
    status(tab, f"{len(expected)} questions, 1 to {len(expected)} shown")
    assert shown(tab) == expected
    tab.get_by_label("show").select_option("always")
    status(tab, "No question is like that.")


def test_search_finds_a_text_in_any_answer_and_stays_within_the_filter(evaluation, opened):
    tab = opened("page.html")
    tab.get_by_label("search").fill("quokka \\EMPH")  # whatever the case, and as it is written
    status(tab, "1 question, 1 to 1 shown")
    assert shown(tab) == [30]
    tab.get_by_label("show").select_option("always")
    status(tab, "No question is like that.")
    tab.get_by_label("search").fill("")
    status(tab, "24 questions, 1 to 20 shown")
    tab.get_by_label("show").select_option("all")
    tab.get_by_label("search").fill("number is 4")
    status(tab, "6 questions, 1 to 6 shown")
    assert shown(tab) == [4, 40, 41, 42, 43, 44]


def test_an_answer_tells_why_it_is_right_or_wrong(evaluation, opened):
    """Question 5: the first of its two answers is right, the second wrong; the filter opens that one."""
    tab = opened("page.html")
    status(tab, "45 questions, 1 to 20 shown")
    card = tab.locator("article.question").nth(5)
    assert card.locator(".verdict").all_text_contents() == ["✓ right", "✗ wrong"]
    assert card.locator("details[open]").count() == 0
    card.locator("summary").nth(1).click()
    card.locator("dl.why").wait_for()  # it is filled when the browser says that it was opened, a moment later
    assert card.locator("dl.why dt").all_text_contents() == ["extracted", "read as", "compared with"]
    assert card.locator("dl.why dd").all_text_contents() == ["6", "6", "5"]
    assert card.locator("details .text").text_content() == "Thinking of 5. So it is 6"
    tab.get_by_label("show").select_option("no-answer")
    expect(tab.locator("details.answer[open] dd").first).to_have_text("nothing: no answer was found")
    expect(tab.locator("details.answer[open] .cut")).to_have_text("cut off")


def test_choices_are_listed_with_the_right_one_marked(tmp_path, opened):
    own = row(1, [1.0]) | {"choices": ["one", "two"], "answer": "B", "extracted": ["B"], "read": ["B"]}
    page.write_evaluation({"a": {**sums(1), "rows": [own]}}, tmp_path / "page.html")
    tab = opened("page.html")
    expect(tab.locator(".choices .gold")).to_have_text("B. two")
    expect(tab.locator("dl.why dd").last).to_have_text("B, two")


def test_of_several_benchmarks_each_has_its_own_filters(tmp_path, opened):
    older = {
        "questions": 1,
        "max_new_tokens": 9,
        "rows": [{"problem": "Old?", "answer": "1", "texts": ["1"], "rewards": [1]}],
    }
    page.write_evaluation({"sums": sums(), "older": older}, tmp_path / "page.html")
    tab = opened("page.html")
    tab.get_by_label("show").select_option("truncated")
    status(tab, "1 question, 1 to 1 shown")
    tab.get_by_label("benchmark").select_option(label="older (1)")
    status(tab, "1 question, 1 to 1 shown")
    assert tab.get_by_label("show").locator("option").count() == 4, "all, wrong, never, always"
    expect(tab.locator("dl.why")).to_contain_text("The file does not tell what was extracted.")
    assert tab.locator(".figures tbody th").all_text_contents() == ["sums", "older"]


def test_rewards_without_verdicts_are_shown_as_rewards(tmp_path, opened):
    unjudged = {"questions": 1, "max_new_tokens": 9, "reward": 0.25, "rows": [row(1, [0.25])]}
    page.write_evaluation({"a": unjudged}, tmp_path / "page.html")
    tab = opened("page.html")
    expect(tab.locator(".verdict")).to_have_text("reward 0.25")
    assert tab.get_by_label("show").locator("option").count() == 3, "all, cut off, no answer"


# ---------------------------------------------------------------------------------------------------------------------
# Side by side
# ---------------------------------------------------------------------------------------------------------------------


def test_two_results_stand_side_by_side_and_under_each_other_on_a_phone(tmp_path, opened):
    """The other one is right on question 0 and wrong on question 1; the rest is equal."""
    theirs = sums()
    theirs["rows"][0] = row(0, [1.0, 0.0])
    theirs["rows"][1] = row(1, [0.0, 0.0])
    page.write_evaluation({"sums": sums()}, tmp_path / "page.html", {"sums": theirs}, ("new model", "old model"))
    tab = opened("page.html")
    tab.get_by_label("show").select_option("won")
    status(tab, "1 question, 1 to 1 shown")
    assert shown(tab) == [1] and tab.locator(".outcome").text_content() == "won"
    tab.get_by_label("show").select_option("lost")
    status(tab, "1 question, 1 to 1 shown")
    assert shown(tab) == [0]
    assert tab.locator("article h4").all_text_contents() == ["new model", "old model"]
    assert tab.locator("article .side .note").all_text_contents() == ["0 of 2 right", "1 of 2 right"]
    left, right = (tab.locator(".side").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    lengths = tab.locator("table.bars").first.locator("tr").first
    assert lengths.locator(".side-0").count() == lengths.locator(".side-1").count() == 1, "a bar in each colour"
    difference = tab.locator(".figures tbody tr").last.locator("td").all_text_contents()
    assert difference[0] == "first − second" and "won 1" in difference and "lost 1" in difference
    narrow = opened("page.html", width=PHONE)
    above, below = (narrow.locator(".side").nth(n).bounding_box() for n in (0, 1))
    assert above["x"] == below["x"] and above["y"] + above["height"] <= below["y"]


# ---------------------------------------------------------------------------------------------------------------------
# Texts
# ---------------------------------------------------------------------------------------------------------------------


def test_hostile_texts_are_texts(tmp_path, opened):
    """In question, answer, extraction, level, subject, name, and setting: nothing runs, all can be read."""
    own = row(
        1, [0.0], problem=EVIL, answer=EVIL, texts=[EVIL], extracted=[EVIL], read=[EVIL], level=EVIL, subject=EVIL
    )
    figures = {EVIL: {"accuracy": 0.0, "questions": 1}}
    result = {**sums(1), "rows": [own], "levels": figures, "subjects": figures, "settings": {"model": EVIL, EVIL: EVIL}}
    page.write_evaluation({EVIL: result}, tmp_path / "page.html")
    tab = opened("page.html")
    status(tab, "1 question, 1 to 1 shown")
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.title() == f"Evaluation: {EVIL}" and tab.locator("img").count() == 0
    expect(tab.locator(".problem")).to_have_text(EVIL)
    assert tab.locator("h1").text_content() == f"Evaluation: {EVIL}"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"$\frac{1}{2}$ and $\dfrac{x+1}{2y}$", "1/2 and (x+1)/2y"),
        (r"\(x^{2} - 3x_1 + 10^{-3}\)", "x² - 3x₁ + 10⁻³"),
        (r"\[ \sqrt{2} \cdot \sqrt[3]{x+1} \]", " √2 · ∛(x+1) "),
        (r"$2\frac{1}{2}$", "2 1/2"),
        (r"$30^\circ$, $x^{n+1}$, $x^{ab}$", "30°, xⁿ⁺¹, x^(ab)"),
        (r"$\frac{\sqrt{2}}{2}$", "√2/2"),
        (r"$\frac{(a+1)(b+2)}{(c)}$", "((a+1)(b+2))/(c)"),
        (r"$0.\overline{37}$", "0.3\u03057\u0305"),
        (r"$\pi \le \alpha \times \infty$", "π ≤ α × ∞"),
        (r"so \boxed{\frac{3}{4}} it is", "so 3/4 it is"),
        (r"\boxed{x^{2}}", "x²"),
        (r"$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$", "[ 1 ,  2 ;  3 ,  4 ]"),
        (r"$\left( a \right) \text{ is in } \mathbb{R}$", "( a )  is in  ℝ"),
        (r"It costs $5 and $6, 50\% more", "It costs $5 and $6, 50% more"),
        (r"C:\new_folder\x and a_b^c {d}", r"C:\new_folder\x and a_b^c {d}"),
        (r"\frac{1}{", "1/()"),
        (r"$x^", "$x^"),
        ("\\", "\\"),
    ],
)
def test_formulas_are_readable_as_text(written, read, blank):
    assert blank.evaluate("text => element('p', {}, readable(text)).textContent", written) == read


def test_what_is_boxed_stands_in_a_frame_and_formulas_can_be_seen_as_written(evaluation, opened):
    tab = opened("page.html")
    tab.locator("summary", has_text="✗").first.click()
    expect(tab.locator(".answer .boxed").first).to_have_text("1")
    tab.get_by_label("formulas as written").check()
    tab.locator("summary", has_text="✗").first.click()
    expect(tab.locator(".answer .text").first).to_have_text("Thinking of 0. So it is \\boxed{1}")


@pytest.mark.parametrize(
    "text", ["{" * 50_000, "$" + "{" * 50_000 + "$", "\\frac" * 20_000, "\\(" * 30_000, "$x" * 30_000, "^" * 9_999]
)
def test_a_model_that_raves_does_not_hang_the_page(text, blank):
    timed = "text => {const t = performance.now(); readable(text); return (performance.now() - t) / 1000}"
    seconds = blank.evaluate(timed, text)
    assert seconds < 3


def test_blocks_are_unpacked_alike_by_older_browsers(blank):
    alike = """() => {
        const newer = Uint8Array.fromBase64, read = () => [...bytesOf("AP8Q")];
        const found = [read()];
        Uint8Array.fromBase64 = undefined;
        found.push(read());
        Uint8Array.fromBase64 = newer;
        return found;
    }"""
    assert blank.evaluate(alike) == [[0, 255, 16], [0, 255, 16]]


# ---------------------------------------------------------------------------------------------------------------------
# A run
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps; the group of step 2 has a masked pair, that of step 3 an anchor and no scores."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = {
        "method": "dagrpo",
        "scale": "std",
        "rectify": "threshold",
        "scorer": "gradient",
        "threshold": None,
        "steps": 3,
    }

    def answer(text: str, reward: float, advantage: float, anchor: bool = False) -> dict[str, Any]:
        return {"text": text, "reward": reward, "advantage": advantage, "anchor": anchor, "tokens": 3}

    three = [answer("a wrong", 0.0, -0.5), answer("b right", 1.0, 0.5), answer("c right", 1.0, 0.0)]
    two = [answer("worked", 1.0, 1.0, True), answer(EVIL, 0.0, -1.0)]
    d = [[0.0, 0.5, 0.1], [0.5, 0.0, 0.4], [0.1, 0.4, 0.0]]
    groups = [
        {"step": 2, "problem": "1 + 1?", "answer": "2", "answers": three,
         "distinctiveness": d, "masked_pairs": [[2, 0]]},
        {"step": 3, "problem": EVIL, "answer": "2", "answers": two,
         "distinctiveness": None, "masked_pairs": []},
    ]  # fmt: skip
    metrics = [
        {"step": n, "reward": n / 10, "no_signal": 0.5, "entropy": None if n == 2 else 0.3, "loss": 0.1}
        for n in (1, 2, 3)
    ]
    evaluations = [{"step": n, **sums(6), "accuracy": n / 4, "interval": [n / 4, (n + 1) / 4]} for n in (0, 3)]
    (folder / "config.json").write_text(json.dumps(config))
    for name, records in (("metrics", metrics), ("samples", groups), ("evaluations", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page.write_run(folder, tmp_path / "run.html")
    return folder


def test_a_run_has_its_curves_and_each_tells_the_value_under_the_pointer(run, opened):
    tab = opened("run.html")
    titles = tab.locator("figcaption").all_text_contents()
    assert titles[:2] == ["held out: accuracy, 95 % interval", "reward of sampled answers"]
    assert "groups without signal" in titles and "loss" not in titles
    held_out, reward = tab.locator(".curve").nth(0), tab.locator(".curve").nth(1)
    assert held_out.locator(".reading").text_content() == "step 3: 75.0 % (75.0 % to 100.0 %)"
    assert held_out.locator("polygon.band").count() == 1
    box = reward.locator("svg").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.56, box["y"] + 30)
    expect(reward.locator(".reading")).to_have_text("step 2: 0.2")
    entropy = tab.locator(".curve", has_text="entropy").locator("path.line").get_attribute("d")
    assert re.findall("[ML]", entropy) == ["M", "M"], "a gap where there is no figure"
    tab.locator("summary", has_text="All other figures").click()
    expect(tab.locator("figcaption", has_text="loss")).to_be_visible()


def test_groups_are_shown_step_by_step_with_masks_and_advantages(run, opened):
    tab = opened("run.html")
    group = tab.locator("article.group")
    expect(group.locator(".problem")).to_have_text(EVIL)
    assert tab.locator("output").text_content() == "step 3"
    assert "not scored" in group.text_content() and group.locator(".cut").text_content() == "anchor"
    tab.locator("nav[aria-label=steps] button", has_text="previous").click()
    expect(group.locator(".problem")).to_have_text("1 + 1?")
    cells = group.locator("table.pairs td")
    assert cells.all_text_contents() == ["", ".40", ".50", ".40", "", ".10", ".50", ".10", ""]
    masked = [n for n in range(9) if "masked" in (cells.nth(n).get_attribute("class") or "")]
    assert masked == [5, 7], "the pair of the second right answer and the wrong one"
    bars = group.locator("table.bars .bar-line span").all_text_contents()
    assert bars == ["+0.707", "+0.5", "+0.707", "0", "−1.41", "−0.5"]
    tab.get_by_label("step", exact=True).fill("1")
    expect(group.locator(".problem")).to_have_text(EVIL)


def test_held_out_questions_of_a_run_stand_beside_those_before_training(run, opened):
    tab = opened("run.html")
    expect(tab.locator("h2", has_text="Held-out questions")).to_have_text("Held-out questions: step 3 against step 0")
    status(tab, "6 questions, 1 to 6 shown")
    assert tab.locator("article:not(.group) h4").all_text_contents()[:2] == ["step 3", "step 0"]


# ---------------------------------------------------------------------------------------------------------------------
# Screens
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_page_is_wider_than_the_screen_and_text_stands_out(width, scheme, evaluation, run, opened):
    """Long words and wide tables scroll within themselves; ink against paper has a contrast of at least 7."""
    for name in ("page.html", "run.html"):
        tab = opened(name, width=width, scheme=scheme)
        expect(tab.locator("article.question").first).to_be_visible()
        for summary in tab.locator("main > details > summary").all():
            summary.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        assert contrast(ink, paper) > 7 and (luminance(paper) < 0.5) == (scheme == "dark")


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines define it: 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
