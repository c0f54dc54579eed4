"""Rows, pictures and prompts for tests of the data."""

import io

from PIL import Image

from rollout.data.prompts import UnreadablePrompt, prompts_from
from rollout.types import Prompt


def png(color="red", size=(8, 4), mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG", **options)
    return file.getvalue()


TRUNCATED = png(size=(64, 64))[:90]


def text_prompt(number):
    return Prompt(id=str(number), messages=[{"role": "user", "content": f"question {number}"}])


def text_prompts(count):
    return [text_prompt(number) for number in range(count)]


def prompts_with_bad_rows(count, bad):
    def to_prompt(number):
        if number in bad:
            raise UnreadablePrompt("torn page")
        return text_prompt(number)

    return prompts_from(range(count), to_prompt)


def image_row(image, **columns):
    return {"question": "what?", "image": image, "answer": "a", **columns}


def drawn(stream, batches):
    return [[int(prompt.id) for prompt in stream.next_batch()] for _ in range(batches)]
