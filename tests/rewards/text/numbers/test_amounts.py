"""Scale words, units and money: the same amount however it is written, as `numeric` compares them."""

import pytest

from rewards import Score
from rewards.verifiers.numeric import numeric
from rollout import Completion, Prompt


def score(answer: object, text: str) -> float | Score:
    return numeric(Prompt(id="q-1", messages=[], answer=answer), Completion(text=text))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("2 3/4 miles", "2.75 miles"),
        ("2¾", r"2\frac{3}{4}"),
        (2.75, "2¾"),
        (2.5, "2 and a half"),
        (8400, "8.4k"),
        ("8.4K", "8400"),
        (8.4e9, "$8.4bn"),
        ("$8.4 billion", "8400 million dollars"),
        ("$8.4m", "8.4M"),
        (84000, "8.4万"),
        ("3.6亿元", "360 million yuan"),
        (36, "three dozen"),
        (250000, "2.5 lakh"),
        (0.0084, "8.4‰"),
        ("8 ppm", "0.000008"),
        ("7 km", "7000 metres"),
        ("7 pounds", "7 lbs"),
        ("£7", "7 pounds"),
        ("$7", "700 cents"),
        ("US$7", "$7"),
        ("7 €", "€7"),
        ("7 kg", "7 kilograms"),
        ("7 kilometers per hour", "7 km/h"),
        ("36 km/h", "10 m/s"),
        ("3 kWh", "3 kilowatt-hours"),
        ("2 gallons", "2 gal"),
        ("5'4\"", "64 inches"),
        ("7 red mice", "7 mice"),
        (1.5, "150%"),
        ("4 (cm)", "4 cm"),
        (r"\frac 3 4", "0.75"),
        ("7 Ω", r"7\,\Omega"),
        ("6元5角", "6.5元"),
        ("7 square feet", "7 ft²"),
        ("3 m s^{-2}", "3 m/s^2"),
        ("18 °C", "18 degrees Celsius"),
        ("18 degrees", "18°"),
        ("7 mice", "7"),
        ("7 trees", "7 tree"),
        ("$7 per hour", "$7/h"),
        ("2 hours 15 minutes", "135 minutes"),
        ("2 hours 15 minutes", "2 h and 15 min"),
        ("1.5 hours", "1 hour 30 minutes"),
        ("6 ft 2 in", "74 inches"),
        ("2小时15分钟", "135分钟"),
        ("12个", "十二"),
        (305, "three hundred and five"),
        (3050000, "3 050 000"),
        (3050000, "3_050_000"),
        (3050000.5, "3.050.000,5"),
        (3.25, "3,25"),
        (-8, "minus 8"),
        (-8, "negative eight"),
        (45, "45%"),
        (45, "45 percentage points"),
        ("45%", "45"),
        (1, "100%"),
        ("百分之八", "8%"),
    ],
)
def test_the_same_amount_is_right(answer: object, text: str) -> None:
    assert score(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("2 3/4 miles", "3/4"),
        ("2 3/4 miles", "2"),
        (2, "2¾"),
        (8.4, "8.4k"),
        (8.4, "8.4 M"),
        (8.4, "8.4千"),
        (8.4, "8.4‰"),
        (8.4, "8.4 dozen"),
        ("8.4 m", "8.4M"),
        ("8.4M", "8.4 m"),
        ("8 million", "8 billion"),
        ("7 m", "7 s"),
        ("7 km", "7 m"),
        ("7 °C", "7 °F"),
        ("7 mice", "7 cats"),
        ("7 red mice", "7 grey mice"),
        ("8 GB", "8 Gb"),
        ("6元5角", "65元"),
        ("2 gallons", "2 L"),
        ("7 mice", "7 kg"),
        ("$7", "7 cents"),
        ("$7", "7 EUR"),
        ("$7 per hour", "$7 per day"),
        ("2 hours 15 minutes", "15"),
        ("2 hours 15 minutes", "2 hours"),
        ("2 hours", "2 hours 15 minutes"),
        (1, "1%"),
    ],
)
def test_another_amount_is_wrong(answer: object, text: str) -> None:
    assert score(answer, text) == 0.0
