"""Form of a response: thoughts and answer in their tags."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.types import Verifier
from rewards.verifiers.options import with_options
from rollout.types import Completion, Prompt


@with_options
def format_tags(*, tags: Sequence[str] = ("think",), answer_follows: bool | None = None) -> Verifier:
    """Makes a verifier of the form `<think>…</think>` and then the answer; a gate for `gated`.

    Each tag must be opened and closed exactly once, in this order, not nested, and with content. Only white space may precede
    the first tag, and separate two. `<think>` may be missing at the beginning: the templates of thinking models put it into the
    prompt.

    Args:
        tags: Their names, in order: `("think", "answer")`.
        answer_follows: Requires text after the last tag; else there must be none. Default: true, unless the last tag is
            `answer`.

    Returns:
        The verifier: 1.0 or 0.0. It checks only the form: nonsense in the right tags earns 1.

    Raises:
        ValueError: There are no tags, one occurs twice, or one is no name.
    """
    are_names = not isinstance(tags, str) and all(isinstance(tag, str) and tag.isidentifier() for tag in tags)
    if not tags or not are_names or len(set(tags)) < len(tags):
        raise ValueError(f"tags of format_tags must be different names such as ('think', 'answer'), got {tags!r}")
    follows = tags[-1] != "answer" if answer_follows is None else answer_follows
    marks = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
    any_mark = re.compile("|".join(map(re.escape, marks)))

    def verify(prompt: Prompt, completion: Completion) -> float:
        text = completion.text
        if tags[0] == "think" and any_mark.findall(text)[:1] == ["</think>"]:
            text = "<think>" + text  # it stands in the prompt
        if any_mark.findall(text) != marks:
            return 0.0
        before, *pieces = any_mark.split(text)
        inside, outside = pieces[::2], pieces[1::2]
        is_empty = [not piece.strip() for piece in [before, *outside[:-1]]]
        return float(all(is_empty) and all(piece.strip() for piece in inside) and bool(outside[-1].strip()) == follows)

    return verify
