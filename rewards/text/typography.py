r"""One spelling for what text and LaTeX write in several ways: full-width forms, `²`, `½`, `√`, minus signs, `\text{}`, `\,`."""

from __future__ import annotations

import unicodedata

from rewards.text.patterns import Pattern

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−﹣－‐‑⁃➖", "-"),
        **{"。": ". ", "、": ", ", "，": ",", "．": ".", "：": ":", "；": "; ", "？": "?", "！": "!"},
        **{
            "（": "(",
            "）": ")",
            "【": "[",
            "】": "]",
            "《": '"',
            "》": '"',
            "「": '"',
            "」": '"',
            "『": '"',
            "』": '"',
        },
        **{"“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "％": "%", "＄": "$", "＝": "=", "＋": "+", "×": "×"},
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),  # without width
        "٫": ".",
        "٬": ",",
    }
)
_LIST_COMMA = Pattern(r"，(?!\d{3}(?!\d))")  # between thousands it is a separator, elsewhere no decimal comma
_SUPERSCRIPT = Pattern(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+)")
_SUBSCRIPT = Pattern(r"([₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+)")
_ROOT = Pattern(r"√\s*(\([^()]*\)|\d+(?:\.\d+)?|[A-Za-z])")
_WRAPPER = Pattern(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|bb|cal|frak|normal)|mbox|hbox|boldsymbol|bm|emph|operatorname\*?"
    r"|underline|displaystyle)\s*\{([^{}]*)\}"
)
_SPACE = Pattern(r"\\[,;:!> ]|\\(?:quad|qquad|enspace|thinspace|displaystyle|left|right|bf|rm|it|sf|tt)(?![A-Za-z])|~")
_MARK = Pattern(r"[\\$*_~]")
_ITALIC = Pattern(r"(?<![\w*])\*([^*\n]{1,200})\*(?![\w*])|(?<!\w)_([^_\n]{1,200})_(?!\w)")
_ESCAPE = Pattern(r"\\([_*#%&|])")
_SMALL_INDEX = Pattern(r" ?([\^_]) ?\{ ?(\w) ?\}")
_ANY_MARK = Pattern(r"[\\$*_~^`\"']")
_LOOSE_DOLLAR = Pattern(r"(?<!\\)\$")
_NUMBER = Pattern(r"([-+]?[$€£¥]?\s?)(\d{1,40}|\d{1,3}(?:,\d{3}){1,12}|\d{1,3}(?: \d{3}){1,12}|)(\.\d{0,40})?(\s?%?)")
_MARKUP = Pattern(r"\*\*|__|(?<!\\)\$|\\[()\[\]]")


def plain_typography(text: str) -> str:
    r"""Returns the text in plain characters: `x²` as `x^{2}`, `5½` as `5 1/2`, `√2` as `\sqrt{2}`, `（３）` as `(3)`, `−` as `-`.

    Digits may be of any script. Ligatures and other compatibility forms are those of NFKC. LaTeX stays as it is.
    """
    if text.isascii():
        return text
    text = _LIST_COMMA.sub(", ", text).translate(_SIGNS)
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[1].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT.sub(lambda match: "_{" + match[1].translate(_SUBSCRIPTS) + "}", text)
    text = _ROOT.sub(lambda match: r"\sqrt{" + match[1].removeprefix("(").removesuffix(")") + "}", text)
    letters = []
    for place, letter in enumerate(text):
        plain = letter if letter.isascii() else _plain_letter(letter)
        if "/" in plain and letter != plain and place and text[place - 1].isdigit():
            plain = " " + plain  # a mixed number
        letters.append(plain)
    return unicodedata.normalize("NFC", "".join(letters))


def _plain_letter(letter: str) -> str:
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    return unicodedata.normalize("NFKC", letter).replace("\u2044", "/")


def without_markup(text: str) -> str:
    r"""Returns the text without LaTeX's and Markdown's wrappers: `\text{knight}` and `**knight**` as `knight`.

    Spaces of LaTeX become one blank, dollars and brackets around formulas vanish. Commands with a meaning, as `\frac`, stay.
    """
    if not _MARK.search(text):
        return text.strip()
    while (bare := _WRAPPER.sub(r"\1", text)) != text:
        text = bare
    return _MARKUP.sub("", _SPACE.sub(" ", text)).strip()


def plain_words(text: str) -> str:
    """Returns the text as it is read: plain typography, and neither markup nor quotes around it. Dashes are hyphens.

    A single dollar is a currency and stays.
    """
    if text.isascii() and not _ANY_MARK.search(text):
        return text.strip()
    text = plain_typography(text).replace("–", "-").replace("—", "-").replace("`", "")
    if len(_LOOSE_DOLLAR.findall(text)) % 2:
        text = _LOOSE_DOLLAR.sub(r"\\$", text)
    text = _ITALIC.sub(lambda match: match[1] or match[2], without_markup(text).replace(r"\$", "$"))
    text = _SMALL_INDEX.sub(r"\1\2", _ESCAPE.sub(r"\1", text)).strip()
    for quote in "\"'":
        if len(text) > 2 and text[0] == text[-1] == quote and quote not in text[1:-1]:
            text = text[1:-1].strip()
    return text


def plain_number(text: str) -> str | None:
    """Returns a number without separators of thousands and needless zeros: `1,200.0` as `1200`; `None` for any other text."""
    match = _NUMBER.fullmatch(text) if len(text) < 100 else None
    if not match or not (match[2] or (match[3] or "").strip(".")):
        return None
    decimals = (match[3] or "").rstrip("0").rstrip(".")
    return f"{match[1].strip()}{match[2].replace(',', '').replace(' ', '') or '0'}{decimals}{match[4].strip()}"
