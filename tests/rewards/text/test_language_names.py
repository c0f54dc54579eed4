"""Languages by code, tag and name; each that the identifier knows has all three."""

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rewards.text.language_names import language_code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("de", "de"),
        ("FR", "fr"),
        ("pt-BR", "pt"),
        ("pt_PT", "pt"),
        ("zh-Hant-TW", "zh"),
        ("ZH_cn", "zh"),
        ("zh-yue", "yue"),
        ("sr-Latn-RS", "sr"),
        ("es-419", "es"),
        ("de-DE-1996", "de"),
        ("en_US.UTF-8", "en"),
        ("nb-NO", "no"),
        ("jpn", "ja"),
        ("GER", "de"),
        ("cmn", "zh"),
        ("Korean", "ko"),
        ("  simplified  CHINESE ", "zh"),
        ("Portuguese (Brazil)", "pt"),
        ("中文（简体）", "zh"),
        ("Deutsch", "de"),
        ("Français", "fr"),
        ("Русский", "ru"),
        ("العربية", "ar"),
        ("日本語", "ja"),
        ("iw", "he"),
        ("Filipino", "tl"),
    ],
)
def test_a_language_has_one_code_for_all_its_names(name: str, code: str) -> None:
    assert language_code(name) == code


@pytest.mark.parametrize(
    "name",
    ["", "x", "und", "mul", "zxx", "Klingon", "German or French", "en fr", "en,fr", "e" * 100, 5, None, ["de"], True],
)
def test_anything_else_is_none(name: object) -> None:
    assert language_code(name) is None


def test_every_language_of_the_identifier_is_known() -> None:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = {str(name) for name in identifier.nb_classes} - {"zxx"}
    assert {name: language_code(name) for name in known} == {name: name for name in known}
