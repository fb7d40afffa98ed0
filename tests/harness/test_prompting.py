"""Prompts from flags: templates, arguments, examples; a run, its resumption and its evaluation have the same."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict

import pytest
from conftest import write_questions

import questions
from harness.config import Config, ConfigError, configure, parse
from harness.evaluation import hash_of_questions, options_of, style_of, with_shuffled_choices
from harness.prompting import arguments_of, contents_of, read_examples, read_template, told
from harness.runs import resumed_config
from questions import DataError, prompt_of
from rollout import Example, PromptStyle, encode_solution, render_prompt

TEMPLATE = "Q: {problem}\n{choices}\nIn a box, \\boxed{}:"
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if effort is defined %}({{ effort }}){% endif %}{% if add_generation_prompt %}[go]{% endif %}"
)
SHOTS = [
    {"problem": "1+2?", "answer": "3", "solution": "It is 3."},
    {"problem": "which?", "answer": "B", "choices": ["4", "5"]},
]


@pytest.fixture
def chat(tokenizer):
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = CHAT
    return copied


# --- what a template makes of a question -----------------------------------------------------------------------------


def test_a_template_has_places_for_the_question_and_its_choices_and_keeps_all_other_braces(chat, tokenizer):
    style = PromptStyle(template=TEMPLATE)
    asked = "Q: 1+1?\nA. 2\nB. 3\nIn a box, \\boxed{}:"
    assert render_prompt(tokenizer, "1+1?", ["2", "3"], style) == asked
    assert render_prompt(chat, "1+1?", ["2", "3"], style) == f"[user]{asked}[go]"


def test_braces_of_a_question_are_no_places():
    """Of LaTeX, or `{choices}` in a problem about templates."""
    found = render_prompt_of("{choices} in $x^{problem}$", ["2"], TEMPLATE)
    assert found == "Q: {choices} in $x^{problem}$\nA. 2\nIn a box, \\boxed{}:"


def render_prompt_of(problem, choices, template):
    from rollout import filled

    return filled(template, problem, choices)


def test_choices_follow_the_problem_where_the_template_has_no_place_for_them():
    """Else nobody would see them."""
    assert render_prompt_of("Which?", ["2", "3"], "{problem} Think!") == (
        "Which?\nA. 2\nB. 3\nThe answer is the letter of one choice. Think!"
    )
    assert render_prompt_of("1+1?", None, TEMPLATE) == "Q: 1+1?\n\nIn a box, \\boxed{}:"


def test_examples_are_asked_like_the_question_and_answered_before_it(chat, tokenizer, tmp_path):
    style = PromptStyle(template="Q: {problem}", examples=read_examples(write_questions(tmp_path / "s.jsonl", SHOTS)))
    second = "Q: which?\nA. 4\nB. 5\nThe answer is the letter of one choice."
    assert render_prompt(chat, "1+1?", None, style) == (
        f"[user]Q: 1+2?[assistant]It is 3.[user]{second}[assistant]The answer is \\boxed{{B}}.[user]Q: 1+1?[go]"
    )
    assert render_prompt(tokenizer, "1+1?", None, style) == (
        f"Q: 1+2?It is 3.\n\n{second}The answer is \\boxed{{B}}.\n\nQ: 1+1?"
    )


def test_a_style_of_files_alone_has_their_template_and_examples(tmp_path):
    (tmp_path / "prompt.txt").write_text(TEMPLATE)
    examples = write_questions(tmp_path / "shots.jsonl", SHOTS[:1])
    style = contents_of(str(tmp_path / "prompt.txt"), str(examples)).style()
    assert style == PromptStyle(template=TEMPLATE, examples=(Example("1+2?", "It is 3."),))


def test_an_anchor_stands_behind_examples_as_a_completion_would(chat):
    """The solution of the question is cut out, not that of an example that reads the same."""
    style = PromptStyle(examples=(Example("1+1?", "it is 2."),))
    ids = encode_solution(chat, [1], ("2+0?", None, style), "it is 2.")
    assert chat.decode(ids[:-1]) == "it is 2." and ids[-1] == 1


def test_arguments_reach_the_chat_template_and_one_that_it_does_not_know_is_named(chat, tokenizer):
    question = {"problem": "1+1?", "answer": "2"}
    assert prompt_of(chat, question, PromptStyle(arguments={"effort": "low"})).endswith("(low)[go]")
    with pytest.raises(DataError, match="--template-arg efort: the model's chat template does not know it"):
        prompt_of(chat, question, PromptStyle(arguments={"efort": "low"}))
    with pytest.raises(DataError, match="--template-arg are for a chat template, and the tokenizer has none"):
        prompt_of(tokenizer, question, PromptStyle(arguments={"effort": "low"}))


def test_a_chat_template_that_refuses_ends_in_a_sentence(chat):
    """As Gemma's does for a system prompt."""
    chat.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(DataError, match=r"chat template cannot make a prompt \(TemplateError: no system role\)"):
        prompt_of(chat, {"problem": "1+1?", "answer": "2"}, PromptStyle(system="x"))


# --- flags ---------------------------------------------------------------------------------------------------------


def test_the_values_of_arguments_are_json_or_text():
    assert arguments_of(["a=true", "b=3", "c=low", 'd="3"', "e=x=y"]) == {
        "a": True, "b": 3, "c": "low", "d": "3", "e": "x=y",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["effort"], "--template-arg effort: it must be NAME=VALUE"),
        (["a b=1"], "--template-arg a b=1: it must be NAME=VALUE"),
        (["enable_thinking=false"], "it is --enable-thinking or --no-enable-thinking here"),
        (["tokenize=true"], "tokenize is given by the program itself"),
        (["a=1", "a=2"], "a is given twice"),
    ],
)
def test_an_argument_that_is_none_is_named(values, message):
    with pytest.raises(ConfigError) as error:
        arguments_of(values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Answer the question.", "{problem} does not stand in it"),
        (b"\xff{problem}", "it is not UTF-8"),
        (b"{problem}" + b"x" * 1_000_000, "more than 1,000,000 characters"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_template_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"--prompt-file .*p\.txt: ") as error:
        read_template(str(tmp_path / "p.txt"))
    assert message in str(error.value)


def test_the_line_end_behind_a_template_is_no_part_of_it(tmp_path):
    (tmp_path / "p.txt").write_text("{problem}\n\n")
    assert read_template(str(tmp_path / "p.txt")) == "{problem}\n"


def test_broken_examples_are_told_like_broken_data(tmp_path):
    with pytest.raises(DataError, match=r"s\.jsonl:1: the field `answer` is missing"):
        read_examples(write_questions(tmp_path / "s.jsonl", [{"problem": "?"}]))


def test_training_and_evaluation_have_the_same_flags_of_prompts():
    names = ("system", "enable_thinking", "template_arg", "prompt_file", "examples")
    typed = ["--system", "x", "--no-enable-thinking", "--template-arg", "a=1", "--prompt-file", "p", "--examples", "e"]
    evaluated = vars(options_of(["--model", "m", "--data", "d", *typed]))
    assert {name: evaluated[name] for name in names} == {name: parse(typed)[name] for name in names}


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A folder with the config.json of a run, whose prompt files are gone."""
    (tmp_path / "p.txt").write_text(TEMPLATE)
    files = {"prompt_file": str(tmp_path / "p.txt"), "examples": write_questions(tmp_path / "s.jsonl", SHOTS)}
    config = configure(model="m", data=["d"], system="be brief", template_arg=["effort=low"], **files)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(asdict(config)))
    for path in files.values():
        (tmp_path / path).unlink()
    return tmp_path / "run", config.prompt_style


def style_with(folder, *flags):
    return style_of(options_of(["--model", str(folder / "model"), "--data", "d", *flags]))


def test_a_run_is_measured_with_the_prompts_that_it_trained_with(run):
    folder, style = run
    assert style.template == TEMPLATE and len(style.examples) == 2 and style.arguments == {"effort": "low"}
    assert style_with(folder) == style


def test_flags_take_the_place_of_single_parts_of_a_runs_prompts(run):
    folder, style = run
    bare = style_with(folder, "--system", "", "--prompt-file", "", "--examples", "")
    assert (bare.system, bare.template, bare.examples) == ("", "", ()) and bare.arguments == style.arguments
    (folder / "p.txt").write_text("{problem}")
    assert style_with(folder, "--prompt-file", str(folder / "p.txt")).template == "{problem}"
    assert style_with(folder, "--template-arg", "effort=high").arguments == {"effort": "high"}


def test_a_resumed_run_keeps_its_prompts_without_their_files(run):
    folder, style = run
    assert resumed_config({"resume": str(folder)}).prompt_style == style


def test_a_resumed_run_with_another_template_is_another_run(run):
    folder, _ = run
    (folder / "p.txt").write_text("{problem}")
    flags = {"resume": str(folder), "prompt_file": str(folder / "p.txt")}
    with pytest.raises(ConfigError, match=r"with --prompt-file .* it would be another run"):
        resumed_config(flags)
    forced = resumed_config({**flags, "force": True}).prompt_style
    assert forced.template == "{problem}" and len(forced.examples) == 2
    assert resumed_config({**flags, "examples": "", "force": True}).prompt_style.examples == ()


@pytest.mark.parametrize("broken", ['{"prompt_contents": {"template": "x"}}', '{"template_arg": ["x"]}', "[]", "{"])
def test_a_config_that_does_not_say_how_prompts_looked_is_named(run, broken):
    folder, _ = run
    (folder / "config.json").write_text(broken)
    with pytest.raises(DataError, match=r"config\.json: it should say how the run's prompts looked"):
        style_with(folder)


def test_a_run_without_such_files_has_nothing_of_them():
    assert Config().prompt_contents is None and Config().prompt_style == PromptStyle()


def test_what_is_not_usual_about_prompts_is_told_in_a_line():
    style = PromptStyle("be brief", None, "{problem}\n" + "x" * 90, {"effort": "low"}, (Example("?", "!"),))
    assert "\n" not in told(style) and len(told(style)) < 200 and told(PromptStyle()) == ""
    assert all(part in told(style) for part in ("be brief", "effort='low'", "'{problem} xx", "1 examples"))


# --- choices in another order --------------------------------------------------------------------------------------


def test_shuffled_choices_keep_the_right_one_and_depend_on_the_seed():
    """Over 400 questions whose right choice stands first, it comes to stand at every place alike."""
    asked = [{"problem": f"{n}?", "answer": "A", "choices": ["right", "w1", "w2", "w3"]} for n in range(400)]
    shuffled = [with_shuffled_choices(question, 7) for question in asked]
    assert all(each["choices"]["ABCD".index(each["answer"])] == "right" for each in shuffled)
    assert all(sorted(each["choices"]) == sorted(asked[0]["choices"]) for each in shuffled)
    counts = [sum(each["answer"] == letter for each in shuffled) for letter in "ABCD"]
    assert min(counts) > 70
    assert shuffled == [with_shuffled_choices(question, 7) for question in asked]
    assert shuffled != [with_shuffled_choices(question, 8) for question in asked]
    assert hash_of_questions(shuffled) != hash_of_questions(asked)
    assert questions.correctness([r"\boxed{right}"], shuffled[:1]) == [1.0]


def test_a_question_without_choices_stays_as_it_is():
    question = {"problem": "1+1?", "answer": "2"}
    assert with_shuffled_choices(question, 7) is question
