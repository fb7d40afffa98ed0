"""The fields of others: what is taken for problem, answer and solution, and what is said of it."""

from __future__ import annotations

import copy
import math

import pytest
from conftest import SOLVED, write_questions

import anchors
import questions
from questions import DataError, key_of, prompt_of
from rollout import INSTRUCTION, PromptStyle
from sources.fields import Fields, Names, at


def read(row, names=None):
    """The question of a row, without its place."""
    question = Fields(Names(names or {})).question("x:1", row)
    assert question.pop("where") == "x:1"
    return question


def said(row, names=None):
    """What is said of how a row is read."""
    fields = Fields(Names(names or {}))
    fields.question("x:1", row)
    return fields.notes("x")


# --- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "holds a list"),
        ({"answer": "2"}, "`problem` is missing; the line has answer"),
        ({"problem": "1+1?"}, "`answer` is missing"),
        ({"problem": "1+1?", "answer": [2]}, "`answer` is [2]; it must be a string that is not empty, or a number"),
        ({"problem": "1+1?", "answer": True}, "`answer` is True; it must be a string"),
        ({"problem": "1+1?", "answer": "2", "level": ["easy"]}, "`level` is ['easy']; it must be a string, a number"),
        ('{"problem": "\\ud83d?", "answer": "2"}', "`problem` has half a character"),
        ('{"problem": "1+1?", "answer": NaN}', "`answer` is nan; it must be a string that is not empty, or a number"),
        ("[" * 100_000, "too deep to be read"),
        ({"query": "1+1?", "answer": "2"}, "the line has query, answer. Is it `query` there? --map problem=query"),
        ({"question": "1+1?", "label": "2"}, "Is it `label` there? --map answer=label"),
        ({"question": 5, "answer": "2"}, "`question` is 5; it must be a string that is not empty."),
        ({"prompt": "?", "reward_model": {"ground_truth": [2]}}, "`reward_model.ground_truth` is [2]; it must be"),
        ({"problem": "?", "solution": "long\nand without end"}, "`solution` has no answer behind #### or in \\boxed{}"),
        ({"messages": [{"role": "user", "content": "1+1?"}]}, "the field `answer` is missing; the line has messages."),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "turn 0 of `prompt` is {'role': 'user'}; a turn must have"),
        ({"messages": [{"from": "human", "value": "?"}], "answer": "2"}, "a `role`, one of system, user, assistant"),
        ({"messages": [{"role": "system", "content": "?"}], "answer": "2"}, "in `messages` the user does not ask last"),
        (
            {"prompt": [{"role": role, "content": "?"} for role in ("user", "assistant")], "answer": "2"},
            "in `prompt` the user does not ask last, so that there is nothing to answer.",
        ),
        ({"problem": " ", "answer": "2"}, "`problem` is ' '"),
        ({"problem": "1+1?", "answer": "2", "solution": 5}, "`solution` is 5"),
        ({"problem": "1+1?", "answer": "2", "choices": "AB"}, "`choices` must be a list"),
        ({"problem": "1+1?", "answer": "C", "choices": ["2", "3"]}, "one of A, B"),
    ],
)
def test_a_broken_line_is_named_by_file_line_and_fault(tmp_path, line, fault):
    source = write_questions(tmp_path / "broken.jsonl", [SOLVED, line])
    with pytest.raises(DataError) as error:
        questions.read_questions([source])
    assert f"{source}:2: " in str(error.value) and fault in str(error.value)


def test_gsm8k_rows_of_the_hub_are_mapped():
    row = {"question": "How many?", "answer": "24+48 = <<24+48=72>>72 clips.\n#### 1,072"}
    assert read(row) == {
        "problem": "How many?",
        "answer": "1072",
        "solution": "24+48 = 72 clips.\nThe answer is \\boxed{1072}.",
    }


def test_the_answer_to_choices_may_have_spaces_around_it(tmp_path):
    source = write_questions(tmp_path / "a.jsonl", [{"problem": "1+1?", "answer": " B ", "choices": ["3", "2"]}])
    assert questions.read_questions([source])[0]["answer"] == " B "


def test_the_last_mark_of_a_hub_row_stands_before_its_answer():
    question = read({"question": "?", "answer": "#### is the mark\n#### 7"})
    assert question["answer"] == "7" and question["solution"].startswith("#### is the mark\n")


@pytest.mark.parametrize("tolerance", [-0.1, 1, True, "a hundredth", [0.01], math.nan])
def test_a_tolerance_that_is_no_share_is_named(tmp_path, tolerance):
    source = write_questions(tmp_path / "a.jsonl", [SOLVED, {**SOLVED, "rel_tol": tolerance}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: `rel_tol` is .*; it must be a number of at least 0 and below 1"):
        questions.read_questions([source])


# --- layouts of other programs -----------------------------------------------------------------------------------

ASKED = 'How many? Let\'s think step by step and output the final answer after "####".'
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": ASKED}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"answer": "24+48 = <<24+48=72>>72 clips.\n#### 72", "question": "How many?", "split": "train"},
}


def test_verls_layout_keeps_its_prompt_and_its_solution_ends_as_that_wants_it():
    question = read(VERL)
    assert (question["problem"], question["answer"]) == (ASKED, "72")
    assert question["solution"] == "24+48 = 72 clips.\n#### 72"
    assert said(VERL) == [
        "x: problem from `prompt`; answer from `reward_model.ground_truth`; solution from `extra_info.answer`."
    ]
    assert questions.correctness([question["solution"]], [question]) == [1.0]


def test_trls_prompt_may_be_a_text_or_a_chat_and_its_solution_the_gold():
    """As TRL's own rewards have it: a `solution` by itself is what is compared with."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    assert read({"prompt": chat, "solution": "$2$", "answer": None}) == {
        "problem": "1+1?",
        "answer": "$2$",
        "earlier_turns": chat[:1],
    }
    assert read({"prompt": "1+1?", "solution": "\\boxed{2}"}) == {"problem": "1+1?", "answer": "2"}
    both = read({"prompt": "1+1?", "answer": 2, "solution": "1+1 = 2. So \\boxed{2}"})
    assert both == {"problem": "1+1?", "answer": "2", "solution": "1+1 = 2. So \\boxed{2}"}


def test_messages_are_asked_up_to_the_users_last_turn_and_the_answer_to_that_is_the_solution():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "2+2?"}]},
        {"role": "assistant", "content": "2+2 is\n\\boxed{4}"},
    ]
    question = read({"messages": turns, "answer": "4"})
    assert (question["problem"], question["earlier_turns"]) == ("And 2+2?", turns[:3])
    assert question["solution"] == "2+2 is\n\\boxed{4}" and "messages" not in question
    assert read({"messages": turns})["answer"] == "4"
    alone = read({"messages": [turns[1], turns[2]]})
    assert alone == {"problem": "1+1?", "answer": "2"}, "an answer alone is no solution"


def test_a_question_may_stand_beside_its_messages():
    """As in UltraChat: `prompt` is the first turn of `messages` once more."""
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is\n#### 2"}]
    question = read({"prompt": "1+1?", "messages": turns})
    assert question["answer"] == "2" and question["solution"] == "It is\nThe answer is \\boxed{2}."


def test_of_math_the_answer_is_in_the_box_and_the_level_stays():
    row = {"problem": "?", "level": "Level 5", "type": "Algebra", "solution": "So $x = \\boxed{\\frac{1}{2}}$."}
    assert read(row) == {**row, "answer": "\\frac{1}{2}"}
    assert said(row) == ["x: answer from `solution`, in its \\boxed{}."]


def test_an_answer_that_is_a_worked_text_with_a_box_is_parted():
    """As it stood the verifier compared with the whole text, and nothing was ever right."""
    question = read({"problem": "1+1?", "answer": "It is 1 more than 1, so \\boxed{2}."})
    assert (question["answer"], question["solution"]) == ("2", "It is 1 more than 1, so \\boxed{2}.")


@pytest.mark.parametrize("answer", [72, 72.0, "72", "$72$", "\\boxed{72}"])
def test_whatever_form_an_answer_has_it_is_compared_by_its_value(answer):
    question = read({"problem": "?", "answer": answer})
    assert questions.correctness(["\\boxed{72}", "\\boxed{73}"], [question] * 2) == [1.0, 0.0]


def test_rows_in_this_projects_own_fields_stay_as_they_are_without_a_word():
    row = {**SOLVED, "choices": None, "level": 3, "messages_of": ["x"]}
    assert read(row) == row and said(row) == []


# --- two candidates ----------------------------------------------------------------------------------------------


def test_of_two_fields_that_differ_the_first_of_the_order_is_taken_and_that_is_said():
    row = {"prompt": "2+2?", "question": "1+1?", "answer": "2", "ground_truth": "4"}
    assert (read(row)["problem"], read(row)["answer"]) == ("1+1?", "2")
    assert said(row)[1:] == [
        "x: 1 questions have `question` and `prompt`, which differ. The problem is `question`: the order is "
        "problem, question, prompt, messages. To take the other: --map problem=prompt",
        "x: 1 questions have `answer` and `ground_truth`, which differ. The answer is `answer`: the order is "
        "answer, ground_truth, reward_model.ground_truth. To take the other: --map answer=ground_truth",
    ]
    assert read(row, {"problem": "prompt"})["problem"] == "2+2?"


def test_two_fields_that_say_the_same_are_no_matter():
    chat = [{"role": "user", "content": "1+1?"}]
    row = {"question": "1+1?", "prompt": chat, "answer": "so\n#### 2", "ground_truth": 2}
    assert len(said(row)) == 1 and "which differ" not in said(row)[0]


def test_a_field_that_is_empty_gives_way_to_the_next():
    assert read({"problem": "", "question": "1+1?", "answer": None, "ground_truth": "2"})["answer"] == "2"


def test_rows_that_are_read_in_different_ways_are_counted(tmp_path):
    lines = [{"question": "1+1?", "answer": "2"}] * 2 + [SOLVED]
    source = write_questions(tmp_path / "a.jsonl", lines)
    _, notes = questions.read_data([source])
    assert notes == [f"{source}: 2 of 3 questions: problem from `question`."]


# --- --map -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a", {"b": [{"c": 1}, "[2, 3]"]}),
        ("a.b.0.c", 1),
        ("a.b[0].c", 1),
        ("a.b.-1.1", 3),
        ("d.e", 4),
        ("a.b.2", None),
        ("a.x", None),
        ("a.b.c", None),
        ("x", None),
    ],
)
def test_a_path_leads_into_a_row(path, value):
    assert at({"a": {"b": [{"c": 1}, "[2, 3]"]}, "d.e": 4}, path) == value


def test_map_names_what_has_another_name():
    row = {"q": {"text": "1+1?"}, "target": 2, "options": "x", "how": "so \\boxed{2}", "id": 7, "grade": "easy"}
    names = {"problem": "q.text", "answer": "target", "solution": "how", "level": "grade"}
    question = read(row, names)
    assert [question[name] for name in ("problem", "answer", "solution", "level", "id")] == [
        "1+1?", "2", "so \\boxed{2}", "easy", 7,
    ]  # fmt: skip
    assert said(row, names) == [
        "x: problem from `q.text`; answer from `target`; solution from `how`; level from `grade`."
    ]


def test_a_chat_that_is_mapped_is_read_as_one():
    row = {"dialog": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "#### 2"}]}
    assert read(row, {"problem": "dialog"}) == {"problem": "1+1?", "answer": "2"}


def test_a_row_without_what_map_names_is_read_as_usual_and_a_name_that_no_row_has_is_an_error(tmp_path):
    """A held-out set may well be in another form than the training set, a typing mistake is in neither."""
    mine = write_questions(tmp_path / "a.jsonl", [{"q": f"{n}+1?", "answer": str(n + 1)} for n in range(6)])
    theirs = write_questions(tmp_path / "b.jsonl", [{"question": "7+1?", "answer": "8"}])
    assert len(questions.read_questions([mine, theirs], names={"problem": "q"})) == 7
    split = questions.split_questions([mine], [theirs], 1, names=Names({"problem": "q"}))
    assert len(split.training) == 6 and split.held_out[0]["problem"] == "7+1?"
    with pytest.raises(DataError, match=r"--map problem=qu: no question of .*b\.jsonl has this field\. A field within"):
        questions.read_questions([theirs], names={"problem": "qu"})
    with pytest.raises(DataError, match=r"a\.jsonl:1: the field `problem` is missing; .* nothing at --map problem=qu"):
        questions.read_questions([mine], names={"problem": "qu"})


# --- prompts of chats --------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[go]"


@pytest.fixture
def chat(tokenizer):
    found = copy.deepcopy(tokenizer)
    found.chat_template = TEMPLATE
    return found


def test_a_chat_is_asked_turn_by_turn_with_its_system_prompt(chat, tokenizer):
    turns = [
        {"role": "system", "content": "be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    question = read({"messages": turns, "answer": "4"})
    assert prompt_of(chat, question) == f"[system]be brief.[user]1+1?[assistant]2[user]2+2?\n\n{INSTRUCTION}[go]"
    of_flag = prompt_of(chat, question, PromptStyle(system="think."))
    assert of_flag.startswith("[system]think.[user]1+1?"), "--system goes before that of the data"
    assert prompt_of(tokenizer, question) == "be brief.\n\n1+1?\n\n2\n\n2+2?\n"


def test_a_prompt_that_says_itself_how_to_answer_gets_no_second_instruction(chat):
    assert prompt_of(chat, read(VERL)) == f"[user]{ASKED}[go]"
    by_system = [{"role": "system", "content": "Put it in \\boxed{}."}, {"role": "user", "content": "1+1?"}]
    assert prompt_of(chat, read({"prompt": by_system, "answer": "2"})).endswith("[user]1+1?[go]")
    plain = read({"question": "What is in the \\boxed{}?", "answer": "2"})
    assert INSTRUCTION in prompt_of(chat, plain), "what a plain question tells of is no instruction"
    assert prompt_of(chat, read(VERL), PromptStyle(template="Q: {problem}")) == f"[user]Q: {ASKED}[go]"


def test_what_was_said_before_makes_another_question_and_how_it_is_asked_does_not():
    asked = {"role": "user", "content": "and then?"}
    first, second = ({"role": "user", "content": text} for text in ("1+1?", "2+2?"))
    system = {"role": "system", "content": "be brief."}
    keys = [key_of(read({"prompt": turns, "answer": "2"})) for turns in ([first, asked], [second, asked], [asked])]
    assert len(set(keys)) == 3
    assert key_of(read({"prompt": [system, asked], "answer": "2"})) == keys[2]


def test_an_anchor_of_a_chat_is_encoded_behind_its_whole_prompt(chat):
    """A template that takes no chat without a system prompt."""
    chat.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('who am I?') }}{% endif %}" + TEMPLATE
    turns = [{"role": "system", "content": "be brief."}, {"role": "user", "content": "1+1?"}]
    question = read({"prompt": turns, "answer": "2", "solution": "so \\boxed{2}"})
    found = anchors.load([question], tokenizer=chat)
    ((ids, _),) = found.available(question)
    assert chat.decode(ids).startswith("so \\boxed{2}")
