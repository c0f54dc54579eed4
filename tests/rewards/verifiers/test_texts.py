"""Text read off a picture, JSON that was asked for, and instructions that can be counted."""

import pytest

from rewards import Score
from rewards.verifiers.instruction_following import INSTRUCTIONS, instruction_following
from rewards.verifiers.json_format import json_format
from rewards.verifiers.text_similarity import text_similarity
from rollout import Completion, Prompt


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        ("STOP", "stop", 1),
        ("STOP", " Stop\n", 1),
        ("kitten", "sitting", 0.5714285714285714),  # three edits in seven letters
        ("kitten", "<answer>kitten</answer> I think", 1),
        ("kitten", r"It says \boxed{kitten}.", 1),
        ("kitten", "<think>sitting?</think>kitten", 1),
        ("kitten", "<think>kitten", 0),
        ("kitten", "the text on the sign says kitten", 0),  # 26 letters that are not there
        ("kitten", "kittenkitten", 0.5),
        ("kitten", "kittenkittenkitten", 0),
        ("kitten", "", 0),
        ("kitten", "ki", 0),
        (["Main St", "Main Street"], "main street", 1),
        (["Main St", "Main Street"], "main stree", 10 / 11),
        ("北京市", "北京", 2 / 3),
        ("a\nb", "a b", 1),
        ("kitten", r"\boxed{\text{Kitten}}", 1),
        ("kitten", "**kitten**.", 1),
        ("kitten", "“kitten”", 1),
        ("kitten", "`kitten`", 1),
        ("kitten", "ｋｉｔｔｅｎ", 1),
        ("kitten", "The answer is kitten.", 1),
        ("kitten", "**Final answer**\n\nkitten", 1),
        ("小猫", "答案是小猫。", 1),
        ("kitten", 'The label on the box: "kitten".', 1),
        ("kitten", "The sign says “kitten”.", 1),
        ("kitten", "The text in the picture is:\n**kitten**", 1),
        ("kitten", "It reads: kitten", 1),
        ("kitten", "```text\nkitten\n```", 1),
        ("小猫", "图中写着“小猫”。", 1),
        ("kitten", 'The sign says "kitten" and also "puppy"', 0),
        ("kitten", "The answer is kitten. There are also a puppy, a foal and a lamb.", 0),
        ("kitten", 'It says "puppy", "foal", "lamb" and "kitten"', 0),
        ("kitten", r"\boxed{kitten}. But wait, let me check", 0),
        ("naïve", "nai\u0308ve", 1),
        ("the cat’s", "the cat's", 1),
        ("1990–1999", "1990-1999", 1),
        ("a , b", "a, b", 1),
        ("上 海", "上海", 1),
        (r"\sqrt { 3 } - y ^ { 2 }", r"$\sqrt{3}-y^2$", 1),
        (2024, "2024", 1),
        ([1.5, "x"], "1.5", 1),
        ("12,000", "12000", 1),
        ("$3.50", "$3.50", 1),
        ("$3.50", "$8.50", 0),
        ("7:45", "7:46", 0),
        ("Gate 14", "Gate 15", 0),
        ("gate 14 is open until ten", "gate 15 is open until ten", 24 / 25),  # in a longer text a digit is a letter
        ("no entry", "entry", 0),
        ("do not push", "do push", 0),
        ("visible", "invisible", 0),
        ("import", "export", 0),
        ("minimum", "maximum", 0),
        ("kittens", "kitten", 6 / 7),
    ],
)
def test_similarity_is_the_share_of_letters_that_stay(answer: object, text: str, reward: float) -> None:
    assert text_similarity(Prompt(id="p", messages=[], answer=answer), Completion(text=text)) == pytest.approx(reward)


def test_a_threshold_may_be_moved() -> None:
    prompt = Prompt(id="p", messages=[], answer="kitten")
    assert text_similarity(threshold=0.6)(prompt, Completion(text="sitting")) == 0.0
    assert text_similarity(threshold=0)(prompt, Completion(text="kit")) == 0.5
    with pytest.raises(ValueError, match="threshold of text_similarity must be from 0 to 1, got 2"):
        text_similarity(threshold=2)


@pytest.mark.parametrize("answer", [None, "", True, [], [""], [None], {"a": "b"}])
def test_without_a_text_there_is_no_similarity(answer: object) -> None:
    score = text_similarity(Prompt(id="p", messages=[], answer=answer), Completion(text="5"))
    assert isinstance(score, Score) and "give a text or a list of texts" in str(score.error)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "any_json", "in_schema"),
    [
        ('{"name": "Bo", "age": 3}', 1, 1),
        ('```json\n{"name": "Bo"}\n```', 1, 1),
        ('Here it is:\n```\n{"name": "Bo"}\n```\nDone.', 1, 1),
        ('<think>{"name": 1}</think>{"name": "Bo"}', 1, 1),
        ('```json\n{"name": 1}\n```\n```json\n{"name": "Bo"}\n```', 1, 1),
        ('```json\n{"name": "Bo"}\n```\n```json\n{"name": 1}\n```', 1, 0),
        ('{"name": "Bo", "age": -1}', 1, 0),
        ('{"name": "Bo", "size": 1}', 1, 0),
        ('{"age": 3}', 1, 0),
        ('{"name": "```py\\nBo\\n```"}', 1, 1),
        ('```json\n{"name": "```py\\nBo\\n```"}\n```\nDone.', 1, 1),
        ('```json\n{"name": "Bo"}\n```\nWait, I should', 0, 0),
        ("[1, 2]", 1, 0),
        ("5", 0, 0),
        ('"Bo"', 0, 0),
        ("null", 0, 0),
        ("", 0, 0),
        ('{"name": "Bo"', 0, 0),
        ("{'name': 'Bo'}", 0, 0),
        ('{"name": "Bo",}', 0, 0),
        ('{"name": "Bo", "name": "Bo"}', 0, 0),
        ('{"name": "Bo", "age": NaN}', 0, 0),
        ('{"name": "Bo", "age": Infinity}', 0, 0),
        ('{"name": "Bo"} {"name": "Bo"}', 0, 0),
        ('Here: {"name": "Bo"}', 0, 0),
        ('{"name": "Bo"} // done', 0, 0),
        ("[" * 100_000 + "]" * 100_000, 0, 0),
        ("[" * 5_000 + "]" * 5_000, 0, 0),
        ('{"a":' * 20_000, 0, 0),
        ("[" + "1," * 2_000_000 + "1]", 0, 0),
        ('{"name": "Bo", "age": 1' + "0" * 10_000 + "}", 0, 0),
        ('{"name": "Bo", "age": 1e999}', 1, 0),
        ('{"name": "\x00"}', 0, 0),
    ],
)
def test_json_is_json_and_fits_its_schema(text: str, any_json: float, in_schema: float) -> None:
    completion = Completion(text=text)
    assert json_format(Prompt(id="p", messages=[]), completion) == any_json
    assert json_format(schema=SCHEMA)(Prompt(id="p", messages=[]), completion) == in_schema
    assert json_format(Prompt(id="p", messages=[], columns={"schema": SCHEMA}), completion) == in_schema


def test_a_schema_that_is_none_is_refused_or_no_verdict() -> None:
    with pytest.raises(ValueError, match="not a JSON Schema: 'thing' is not valid"):
        json_format(schema={"type": "thing"})
    for schema in ({"type": "thing"}, "{", {1, 2}):
        score = json_format(Prompt(id="p-3", messages=[], columns={"schema": schema}), Completion(text="{}"))
        assert isinstance(score, Score) and "prompt 'p-3' has no valid schema in its column 'schema'" in str(
            score.error
        )


@pytest.mark.parametrize(
    ("asked", "right", "wrong"),
    [
        ({"min_words": 3}, "one two three", "one two"),
        ({"max_words": 2}, "one two", "one two three"),
        ({"min_sentences": 2}, "It is. It was.", "It is, and it was 3.5 high."),
        ({"max_sentences": 1}, "It was 3.5 m high.", "It is! It was."),
        ({"paragraphs": 2}, "one\n\n\ntwo", "one\ntwo"),
        ({"max_characters": 3}, "one", "four"),
        ({"keywords": ["red", "blue"]}, "Red and BLUE.", "reddish and blue"),
        ({"forbidden": ["red"]}, "It is reddish.", "It is Red."),
        ({"keyword_counts": {"red": 2}}, "red, red", "red, red, red"),
        ({"case": "upper"}, "IT IS 5", "It is 5"),
        ({"case": "lower"}, "it is 5", "It is 5"),
        ({"language": "de"}, "Das ist ein schöner großer Hund.", "This is a beautiful big dog, isn't it?"),
        ({"bullets": 2}, "So:\n- one\n* two", "- one\n- two\n- three"),
        ({"numbered": 2}, "1. one\n2) two", "1.one\n2. two"),
        ({"starts_with": "Dear"}, "Dear you", "My dear"),
        ({"ends_with": "Bye."}, "So. Bye.\n", "Bye. So."),
        ({"no_commas": True}, "one and two", "one, two"),
        ({"no_commas": True}, "ثلاثة وأربعة", "ثلاثة، أربعة"),
        ({"title": True}, "<<My day>>\nIt rained.", "<< >> It rained."),
        ({"postscript": "P.S."}, "It rained.\n\nP.S. Bring an umbrella.", "It rained. P.S."),
        ({"placeholders": 2}, "Dear [name], come on [day].", "Dear [name], come on [1]."),
        ({"sections": {"Section": 2}}, "Section 1\nIt rained.\n**Section 2**\nIt stopped.", "Section 1\nSection"),
        ({"min_letters": {"e": 2}}, "Eve", "even"[:2]),
        ({"max_letters": {"e": 1}}, "red", "Eve"),
        ({"quoted": True}, '"It rained."', 'He said "It rained."'),
        ({"repeats": "What is it?"}, "What is it? It is rain.", "What is it?"),
        # Scripts without blanks, and words with particles.
        ({"forbidden": ["蓝色"]}, "天空很漂亮。", "天空是蓝色的。"),
        ({"keywords": ["蓝色", "大海"]}, "大海是蓝色的。", "天空是蓝色的。"),
        ({"keyword_counts": {"青い": 2}}, "青い空と青い海です。", "青い空です。"),
        ({"forbidden": ["ทะเล"]}, "ฉันชอบภูเขา", "ฉันชอบทะเลมาก"),
        ({"forbidden": ["바다"]}, "나는 산을 좋아한다.", "나는 바다를 좋아한다."),
        ({"keywords": ["바다"]}, "바다에서는 쉬어요.", "나는 산을 좋아한다."),
        ({"forbidden": ["بحر"]}, "أحب الجبل", "أحب البحر"),
        ({"max_words": 6}, "天空很蓝。", "今天的天空特别蓝，大海也很蓝。"),
        ({"min_words": 6}, "今天的天空特别蓝。", "天空很蓝。"),
        ({"max_words": 4}, "空は青い。", "今日の空はとても青くて、海も青いです。"),
        ({"max_words": 6}, "ฉันชอบทะเล", "ฉันชอบทะเลและภูเขามากที่สุดในโลกเลย"),
        ({"min_sentences": 2}, "यह कुत्ता है। वह बिल्ली है।", "यह कुत्ता है।"),
        ({"min_sentences": 2}, "هل هذا كلب؟ هذه قطة.", "هل هذا كلب؟"),
        # What pads is not counted.
        ({"min_words": 4}, "It is a dog", "dog - - - . . . ***"),
        ({"min_sentences": 3}, "It is. It was. It will be.", "It is. . . . !"),
        ({"bullets": 2}, "- one\n- two", "- one\n- - -"),
        ({"numbered": 2}, "1. one\n2. two", "1. one\n2. ..."),
        ({"paragraphs": 2}, "one\n\ntwo", "one\n\n***"),
        ({"case": "upper"}, "NO", "7 + 7 = 14"),
        ({"language": "de"}, "Das ist ein Hund.", "42"),
        ({"language": "zh"}, "一只狗。", "A dog."),
        (
            {"language": "de"},
            "Das ist ein schöner großer Hund, der gern im Garten spielt.",
            "Das ist ein schöner großer Hund. It plays in the garden with a red ball.",
        ),
        # What evades is.
        ({"forbidden": ["blue"]}, "It is bluish.", "It is _blue_."),
        ({"forbidden": ["blue"]}, "It is bluish.", "It is b\u200blue."),
        ({"forbidden": ["blue"]}, "It is bluish.", "It is ｂｌｕｅ."),
        ({"forbidden": ["blue"]}, "It is bluish.", "It is b**lu**e."),
        ({"forbidden": ["peace"]}, "It is calm.", "It is реасе."),  # Cyrillic
        ({"max_words": 3}, "a well-known dog", "one-two-three-four"),
        ({"max_words": 3}, "a state-of-the-art dog", "one-two-three four"),
        ({"max_words": 5}, "my well-known mother-in-law came", "one-two three-four five-six"),
        ({"max_words": 3}, "3,000.5 big dogs", "one,two/three…four"),
        ({"max_words": 3}, "don't do it", "one\u200btwo\u200bthree\u200bfour"),
        # Stops that end no sentence, and marks behind them.
        ({"max_sentences": 1}, "Dr. Jones came at 5 p.m. with J. Smith, i.e. late.", "He came. She left."),
        ({"max_sentences": 1}, "See Fig. 5 for it.", "No. I do not."),
        ({"min_sentences": 2}, "(It rains.) “It pours.”", "It rains"),
        ({"ends_with": "Any questions?"}, 'So. "Any questions?"', "Any questions? No."),
        ({"starts_with": "Dear"}, "**Dear** you", "Oh dear"),
        ({"bullets": 2}, "- one\n  - its part\n- two", "```\n- one\n- two\n```"),
    ],
)
def test_each_instruction_has_a_response_that_fulfils_it_and_one_that_does_not(asked, right: str, wrong: str) -> None:
    prompt = Prompt(id="p", messages=[], columns={"instructions": asked})
    [name] = asked
    assert instruction_following(prompt, Completion(text=right)) == Score(reward=1.0, parts={name: 1.0})
    assert instruction_following(prompt, Completion(text=wrong)) == Score(reward=0.0, parts={name: 0.0})
    assert instruction_following(prompt, Completion(text=f"<think>{right}</think>{wrong}")).reward == 0.0
    assert instruction_following(prompt, Completion(text="")).reward == 0.0


def test_all_instructions_are_tried_above() -> None:
    [mark] = test_each_instruction_has_a_response_that_fulfils_it_and_one_that_does_not.pytestmark
    assert {name for asked, _, _ in mark.args[1] for name in asked} == INSTRUCTIONS.keys()


def test_several_instructions_count_together_or_each_for_itself() -> None:
    prompt = Prompt(id="p", messages=[], columns={"instructions": {"max_words": 3, "case": "lower", "bullets": 0}})
    completion = Completion(text="It is red")
    parts = {"max_words": 1.0, "case": 0.0, "bullets": 1.0}
    assert instruction_following(prompt, completion) == Score(reward=0.0, parts=parts)
    assert instruction_following(partial=True)(prompt, completion) == Score(reward=pytest.approx(2 / 3), parts=parts)


@pytest.mark.parametrize(
    ("instructions", "told"),
    [
        (None, "give a mapping with some of min_words"),
        ({}, "give a mapping"),
        ({"max_word": 3}, "{'max_word': 3}; give a mapping with some of"),
        ({"max_words": "three"}, "an instruction whose value does not fit its name: {'max_words': 'three'} (TypeError"),
        ({"max_words": True}, "a number is needed, got True"),
        ({"keywords": "red"}, "a list of words is needed, got 'red'"),
        ({"forbidden": [""]}, "a word is empty"),
        ({"language": "Germanic"}, "'Germanic' is no known language: give its code of ISO 639"),
        ({"case": "title"}, "does not fit its name: {'case': 'title'} (KeyError"),
    ],
)
def test_instructions_that_cannot_be_read_are_an_error(instructions: object, told: str) -> None:
    score = instruction_following(
        Prompt(id="p", messages=[], columns={"instructions": instructions}), Completion(text="a")
    )
    assert isinstance(score, Score) and told in str(score.error)


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        ("Gate B", "Gate D"),
        ("Block 7C", "Block 7D"),
        ("4 pm", "4 am"),
        ("Closed on Tuesday", "Closed on Thursday"),
        ("June 1998", "July 1998"),
        ("seven", "eleven"),
        ("South Pier", "North Pier"),
        ("PUSH", "PULL"),
    ],
)
def test_another_letter_day_or_opposite_is_no_misread_letter(reference: str, other: str) -> None:
    def score(text: str) -> object:
        return text_similarity(Prompt(id="p", messages=[], answer=reference), Completion(text=text))

    assert score(reference) == 1.0 and score(other) == 0.0


def test_a_misread_letter_of_a_word_costs_its_share() -> None:
    prompt = Prompt(id="p", messages=[], answer="South Pier")
    assert text_similarity(prompt, Completion(text="Soulh Pier")) == pytest.approx(0.9)  # one letter of ten
