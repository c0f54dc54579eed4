"""Ready-made environments: tools that return a picture or a number, and a game.

A custom environment is an object with two methods, `reset(prompt)` and `step(completion) -> Observation | Done`. `train(...,
environment=MyEnvironment)` makes one for each episode. A policy's text may be hostile, so these environments parse it and never run
it.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from rollout.types import Completion, Done, Observation, Prompt

if TYPE_CHECKING:
    from PIL import Image

ReadCall: TypeAlias = Callable[[str], Mapping[str, Any] | None]
"""Returns the arguments of the tool call in a turn's text, or None without one. The policy reads the message of a ValueError."""

MOST_SLENDER = 100
"""Largest ratio of a cut-out's sides. Qwen3-VL's processor refuses ratios above 200."""
COORDINATES = 1000
"""Width and height of every picture in Qwen3-VL's coordinates (arXiv 2511.21631)."""
MOST_ARGUMENT_TEXT = 2000
"""Longest tool call, in characters."""


def qwen_tool_call(name: str) -> ReadCall:
    """Returns a reader of Qwen3-VL's calls: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

    Args:
        name: The tool's name. A call of another tool is refused.
    """

    def read(text: str) -> Mapping[str, Any] | None:
        # A call inside a Thinking model's reasoning does not count.
        _, found, rest = text.rpartition("</think>")[2].rpartition("<tool_call>")
        if not found:
            return None
        body = rest.partition("</tool_call>")[0].strip()
        if len(body) > MOST_ARGUMENT_TEXT:
            raise ValueError(f"a call of {len(body)} characters is too long")
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("the call is not JSON") from None
        if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
            raise ValueError('a call is {"name": ..., "arguments": {...}}')
        if call.get("name") != name:
            raise ValueError(f"the tool is called {name}")
        return call["arguments"]

    return read


READ_ZOOM = qwen_tool_call("image_zoom_in_tool")
READ_CALCULATION = qwen_tool_call("calculator")


class ZoomTool:
    """A tool to zoom into pictures (thinking with images): shows a part of a picture, enlarged. A turn without a call is the last.

    A call has `bbox_2d` [x1, y1, x2, y2] from 0 to 1000 over width and height, and `img_idx`, the number of the image. The prompt's
    images come first, then those of the tool; default 0. The part is cut from the dataset's picture in full resolution.

    Args:
        read_call: Reads a call; default: Qwen3-VL's `image_zoom_in_tool`.
        min_pixels: The part is enlarged to at least so many pixels; default: 256 tokens, as in Qwen's tool.
        max_pixels: The part is reduced to at most so many pixels.
    """

    def __init__(
        self, read_call: ReadCall = READ_ZOOM, *, min_pixels: int = 256 * 32 * 32, max_pixels: int = 2048 * 2048
    ) -> None:
        if not 0 < min_pixels <= max_pixels:
            raise ValueError(f"min_pixels must be > 0 and at most max_pixels, got {min_pixels} and {max_pixels}")
        self._read_call, self._min_pixels, self._max_pixels = read_call, min_pixels, max_pixels

    def reset(self, prompt: Prompt) -> None:
        """Stores the prompt's pictures."""
        self._images = list(prompt.images)

    def step(self, completion: Completion) -> Observation | Done:
        """Returns the part of the picture, or an error message about the call."""
        try:
            call = self._read_call(completion.text)
            if call is None:
                return Done()
            self._images.append(self._cut(call))
        except ValueError as error:
            return Observation(text=f"error: {error}", role="tool")
        return Observation(images=self._images[-1:], role="tool")

    def _cut(self, call: Mapping[str, Any]) -> Image.Image:
        index, box = call.get("img_idx", 0), call.get("bbox_2d")
        if index not in range(len(self._images)):
            raise ValueError(f"img_idx must be from 0 to {len(self._images) - 1}")
        if not _is_box(box):
            raise ValueError(f"bbox_2d must be four numbers from 0 to {COORDINATES}")
        image = self._images[int(index)]
        x1, y1, x2, y2 = box
        left, right = math.floor(x1 * image.width / COORDINATES), math.ceil(x2 * image.width / COORDINATES)
        top, bottom = math.floor(y1 * image.height / COORDINATES), math.ceil(y2 * image.height / COORDINATES)
        width, height = right - left, bottom - top
        if not (width > 0 and height > 0):
            raise ValueError("bbox_2d must have x1 < x2 and y1 < y2")
        if max(width, height) > MOST_SLENDER * min(width, height):
            raise ValueError(f"bbox_2d must not be longer than {MOST_SLENDER} times its other side")
        scale = max(1.0, math.sqrt(self._min_pixels / (width * height)))
        scale = min(scale, math.sqrt(self._max_pixels / (width * height)))
        part = image.crop((left, top, right, bottom))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return part if size == part.size else part.resize(size)


def _is_box(value: Any) -> TypeGuard[Sequence[float]]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(isinstance(number, int | float) and 0 <= number <= COORDINATES for number in value)


class Calculator:
    """A calculator. A turn without a call is the last.

    It accepts numbers, + - * / // % ** and parentheses in Python's syntax, and refuses large powers. A call has `expression`.

    Args:
        read_call: Reads a call; default: Qwen's format, of a tool named `calculator`.
    """

    def __init__(self, read_call: ReadCall = READ_CALCULATION) -> None:
        self._read_call = read_call

    def reset(self, prompt: Prompt) -> None:
        """Does nothing."""

    def step(self, completion: Completion) -> Observation | Done:
        """Returns the value, or an error message."""
        try:
            call = self._read_call(completion.text)
            if call is None:
                return Done()
            return Observation(text=_shown(calculate(str(call.get("expression", "")))), role="tool")
        except ValueError as error:
            return Observation(text=f"error: {error}", role="tool")


class GuessNumber:
    """A game: the policy guesses the prompt's answer, a whole number. Each answer is "higher" or "lower".

    The outcome has `won` and the number of `guesses`.

    Args:
        max_guesses: Guesses after which the game is lost.
    """

    def __init__(self, max_guesses: int = 3) -> None:
        if max_guesses < 1:
            raise ValueError(f"max_guesses must be >= 1, got {max_guesses}")
        self._max_guesses = max_guesses

    def reset(self, prompt: Prompt) -> None:
        """Stores the number."""
        self._number, self._guesses = int(prompt.answer), 0

    def step(self, completion: Completion) -> Observation | Done:
        """Compares the last whole number of the turn. A turn without one, or with too many digits, is a wasted guess."""
        self._guesses += 1
        numbers = re.findall(r"(?<!\d)-?\d+", completion.text)
        guess = int(numbers[-1]) if numbers and len(numbers[-1]) < MOST_DIGITS else None
        if guess == self._number or self._guesses == self._max_guesses:
            return Done(outcome={"won": guess == self._number, "guesses": self._guesses})
        if guess is None:
            return Observation(text="a number?")
        return Observation(text="higher" if guess < self._number else "lower")


MOST_DIGITS = 20
"""Longest guess."""
OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
MOST_BITS = 1024
"""Largest size of whole numbers in an expression, intermediate results included, in bits."""
MOST_EXPRESSION = 200
"""Longest expression, in characters."""


def calculate(expression: str) -> int | float:
    """Returns the value of an arithmetic expression, in bounded time and memory.

    Raises:
        ValueError: If it has more than numbers and operators, is too large, or has no value.
    """
    if len(expression) > MOST_EXPRESSION:
        raise ValueError(f"an expression of {len(expression)} characters is too long")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("that is not an arithmetic expression") from None
    except ZeroDivisionError:
        raise ValueError("division by zero") from None
    except OverflowError:
        raise ValueError("the number is too large") from None


def _value(node: ast.AST) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in OPERATORS:
            return _bounded(OPERATORS[type(sign)](_value(operand)))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bounded(_power(_value(left), _value(right)))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return _bounded(OPERATORS[type(sign)](_value(left), _value(right)))
    raise ValueError("that is not an arithmetic expression")


def _power(base: int | float, exponent: int | float) -> int | float:
    if isinstance(base, int) and isinstance(exponent, int) and abs(exponent) * (abs(base).bit_length() - 1) > MOST_BITS:
        raise ValueError("the number is too large")
    value = base**exponent
    if isinstance(value, complex):
        raise ValueError("a negative number has no such power")
    return value


def _bounded(value: int | float) -> int | float:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError("the number is too large")
    if not math.isfinite(value):
        raise ValueError("the number is too large")
    return value


def _shown(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.12g}"
