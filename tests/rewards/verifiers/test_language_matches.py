"""A response in the language of its prompt, and in another, all of it or half."""

import pytest

from rewards import Score
from rewards.verifiers.language_matches import language_matches
from rollout import Completion, Prompt

QUESTIONS = {
    "en": "How many dogs are in the picture, and what are they doing?",
    "de": "Wie viele Hunde sind auf dem Bild, und was machen sie?",
    "fr": "Combien de chiens y a-t-il sur l'image, et que font-ils ?",
    "ru": "Сколько собак на картинке и что они делают?",
    "zh": "图片里有几只狗？它们在做什么？",
    "ja": "写真には犬が何匹いますか？何をしていますか？",
    "ko": "사진에 개가 몇 마리 있고 무엇을 하고 있나요?",
    "ar": "كم عدد الكلاب في الصورة وماذا تفعل؟",
}
ANSWERS = {
    "en": "There are five dogs in the picture. They are playing in the snow, so the answer is 5.",
    "de": "Auf dem Bild sind fünf Hunde. Sie spielen im Schnee, also ist die Antwort 5.",
    "fr": "Il y a cinq chiens dans l'image, ils jouent dans la neige. La réponse est donc 5.",
    "ru": "На картинке пять собак, они играют в снегу.",
    "zh": "图片里有五只狗，它们在雪地里玩耍。",
    "ja": "写真には犬が五匹います。雪の中で遊んでいます。",
    "ko": "사진에는 개 다섯 마리가 있고 눈 속에서 놀고 있습니다.",
    "ar": "هناك خمسة كلاب في الصورة تلعب في الثلج.",
}


def score(question: str, answer: str, **options: object) -> object:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    columns = {key: options.pop(key) for key in ("language",) if key in options}
    prompt = Prompt(id="p-1", messages=[{"role": "user", "content": content}], columns=columns)
    return language_matches(**options)(prompt, Completion(text=answer))


@pytest.mark.parametrize("asked", QUESTIONS)
@pytest.mark.parametrize("answered", ANSWERS)
def test_only_the_language_of_the_question_is_right(asked: str, answered: str) -> None:
    related = {("ja", "zh")}  # Japanese has all that Chinese is written with, and this answer is too short to tell
    if (asked, answered) not in related:
        assert score(QUESTIONS[asked], ANSWERS[answered]) == float(asked == answered)


@pytest.mark.parametrize("language", QUESTIONS)
@pytest.mark.parametrize("answer", ["5", r"\boxed{5}", "A", "(B)", r"$x^2 + 3x = 5$", "[120, 30, 400, 256]", "3.5 × 2"])
def test_what_has_no_language_fits_every_prompt(language: str, answer: str) -> None:
    assert score(QUESTIONS[language], answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("There are five dogs in the picture. 因此答案是五只狗。 They are playing in the snow.", 0.0),
        (f"{ANSWERS['en']} {ANSWERS['de']}", 0.0),
        (f"<think>{ANSWERS['zh']}</think>{ANSWERS['en']}", 0.0),
        (f"{ANSWERS['en']} The sign says 北京.", 1.0),  # a name, quoted
        (f"{ANSWERS['en']} They live in the Schönbrunner Schloßstraße.", 1.0),
        (f"{ANSWERS['en']} $\\alpha + \\beta = \\text{{Summe}}$", 1.0),
        ("```python\nfuer = [wert for wert in liste]\n```\nThis program makes a list of all the values.", 1.0),
        ("", 0.0),
        (" \n", 0.0),
    ],
)
def test_one_that_changes_its_language_fails_and_a_name_does_no_harm(answer: str, reward: float) -> None:
    assert score(QUESTIONS["en"], answer) == reward


def test_a_column_says_it_where_the_question_is_in_another_language() -> None:
    assert score("Translate 'good morning, how are you today?' please", ANSWERS["de"], language="de") == 1.0
    assert score("Translate 'good morning, how are you today?' please", ANSWERS["en"], language="de") == 0.0


def test_where_the_question_says_too_little_only_the_alphabet_counts() -> None:
    assert [score("2 + 2 = ?", ANSWERS[language]) for language in ("en", "de", "zh")] == [1.0, 1.0, 0.0]


def test_what_is_tolerated_is_an_option() -> None:
    mixed = f"{ANSWERS['en']} {ANSWERS['de']}"
    assert (score(QUESTIONS["en"], mixed), score(QUESTIONS["en"], mixed, tolerated=0.6)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="tolerated of language_matches must be >= 0 and < 1, got 1"):
        language_matches(tolerated=1)


SHORT = {
    "图中有几只狗？": "图中有五只狗。",
    "Сколько собак?": "На картинке пять собак.",
    "ما هذا؟": "هذا كلب صغير.",
    "¿Cuántos perros hay?": "Hay cinco perros en la imagen.",
    "Hvor mange hunder?": "Det er fem hunder på bildet.",
    "Hvor mange hunde?": "Der er fem hunde på billedet.",
    "Berapa anjing?": "Ada lima ekor anjing di dalam gambar ini.",
    "O que é isto?": "É um cachorro pequeno brincando na neve.",
}


@pytest.mark.parametrize("question", SHORT)
@pytest.mark.parametrize("english", [ANSWERS["en"], "There are five dogs."])
def test_a_short_question_is_in_one_of_some_related_languages_and_never_in_english(question: str, english: str) -> None:
    assert score(question, english) == 0.0
    assert score(question, SHORT[question]) == score(question, "5") == score(question, "A") == 1.0
    assert score(question, f"<think>{ANSWERS['en']}</think>{SHORT[question]}") == 0.0


@pytest.mark.parametrize(
    ("asked", "text", "reward"),
    [
        ("en", f"`{ANSWERS['ru']}` So it is five.", 0.0),
        ("en", f"$\\text{{{ANSWERS['zh']}}}$ So it is five.", 0.0),
        ("en", "$$\\text{Auf dem Bild sieht man fünf Hunde, die dort spielen}$$ So it is five.", 0.0),
        ("en", f"```\n{ANSWERS['de']}\n```\nSo it is five.", 0.0),
        ("zh", f"`{ANSWERS['en']}` {ANSWERS['zh']}", 0.0),
        (
            "zh",
            "```python\n# Read the numbers and return the sum of them\nreturn sum(x)\n```\n这个函数返回它们的和。",
            1.0,
        ),
        ("en", f"```python\n# {ANSWERS['fr']}\nreturn sum(x)\n```\nThis program adds all the numbers.", 0.0),
        ("en", "```python\nprint('你好')\n```\nThis program says hello to everybody.", 1.0),
        ("zh", "图里的牌子上写着“Keep calm and carry on”。", 1.0),
        ("en", "The sign reads 「東京大学」.", 1.0),
        ("en", "東京大学", 1.0),  # as short as what is read off a sign
    ],
)
def test_thoughts_do_not_hide_in_formulas_or_programs_and_quotations_do_no_harm(
    asked: str, text: str, reward: float
) -> None:
    assert score(QUESTIONS[asked], text) == reward


@pytest.mark.parametrize("language", ["German", "deutsch", "DE", "de-DE", "de_AT", "deu", "ger", "German (Austria)"])
def test_a_column_may_name_the_language_in_many_ways(language: str) -> None:
    assert score(QUESTIONS["en"], ANSWERS["de"], language=language) == 1.0
    assert score(QUESTIONS["en"], ANSWERS["en"], language=language) == 0.0


@pytest.mark.parametrize("language", ["Germanic", "", "xx-XX", "same as the question", 5])
def test_a_column_that_names_no_known_language_is_an_error(language: object) -> None:
    told = score(QUESTIONS["de"], ANSWERS["de"], language=language)
    assert isinstance(told, Score) and f"{language!r} is no known language: give its code of ISO 639" in str(told.error)
