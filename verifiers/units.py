"""The units an answer may carry. A word that is not here is a trailing word, and a trailing word is no answer.

A unit is a product of powers of base dimensions with an exact factor: 1 m = 100 cm, 36 km/h = 10 m/s. Things that are
counted (apples, students) are dimensions of their own: 5 apples are not 5 oranges.
"""

from __future__ import annotations

from fractions import Fraction

Dimensions = tuple[tuple[str, int], ...]
Unit = tuple[Fraction, Dimensions]

_SCALED = {
    "length": "m meter metre 1; cm centimeter centimetre 1/100; mm millimeter millimetre 1/1000; "
    "km kilometer kilometre 1000; inch inches 127/5000; ft foot feet 381/1250; yd yard 1143/1250; mi mile 201168/125",
    "mass": "g gram 1; kg kilogram kilo 1000; mg milligram 1/1000; lb lbs pound 45359237/100000; "
    "oz ounce 45359237/1600000; ton tonne 1000000",
    "time": "s sec second 1; ms millisecond 1/1000; min minute 60; h hr hour 3600; day 86400; week 604800",
    "volume": "l liter litre 1; ml milliliter millilitre 1/1000; gallon 473176473/125000000",
    "usd": "usd dollar 1; cent 1/100",
    "year": "yr year 1; month 1/12",
    "deg": "deg degree 1",
}
# Single letters are variables in mathematics: as units they count in \text{} alone (see latex.py).
_PLAIN = (
    "radian rad unit euro eur gbp rupee yuan yen am pm mph kph newton n joule j watt w volt v ampere a ohm hz hertz "
    "pascal pa kelvin k mole mol celsius fahrenheit bit byte acre "
    "apple orange banana book student people person child boy girl man woman way time number point question "
    "marble ball card coin penny nickel dime quarter ticket page piece slice pizza cookie candy pencil pen egg cup "
    "car bus train stamp flower tree bird cat dog fish chicken cow horse rabbit sheep toy sticker game team player "
    "worker member guest friend table chair box bag bottle row column side edge vertex face triangle square rectangle "
    "circle digit integer value solution root term step turn hand move cube block tile brick color shirt sock shoe "
    "dozen pair group set case problem test class grade lesson trip lap mark vote seat room house floor stair plant "
    "muffin cake donut bagel sandwich pound-force necklace bead ribbon rope bucket animal leg wheel spoonful paper "
    "word letter outfit arrangement combination permutation committee possibility path route subset function pirate"
)
_IRREGULAR = {
    "feet": "foot", "inches": "inch", "men": "man", "women": "woman", "children": "child", "vertices": "vertex",
    "faces": "face", "boxes": "box", "pennies": "penny", "candies": "candy", "possibilities": "possibility",
    "matches": "match", "classes": "class", "buses": "bus", "persons": "people", "person": "people", "sq": "square",
    "pieces": "piece", "slices": "slice", "cubes": "cube", "sides": "side", "metres": "metre", "litres": "litre",
}  # fmt: skip


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for dimension, entries in _SCALED.items():
        for entry in entries.split(";"):
            *names, factor = entry.split()
            for name in names:
                table[name] = (Fraction(factor), ((dimension, 1),))
    for name in _PLAIN.split():
        table.setdefault(name, (Fraction(1), ((name, 1),)))
    table["mph"] = (Fraction(201168, 125 * 3600), (("length", 1), ("time", -1)))
    table["kph"] = (Fraction(1000, 3600), (("length", 1), ("time", -1)))
    for name in ("unit", "number", "value", "time", "way"):  # these say nothing of what is counted
        table[name] = (Fraction(1), ())
    return table


_TABLE = _table()


def lookup(word: str) -> Unit | None:
    """The unit that `word` names, in singular or plural; `None` where it names none."""
    word = word.lower()
    word = _IRREGULAR.get(word, word)
    if word in _TABLE:
        return _TABLE[word]
    if len(word) > 3 and word.endswith("s"):
        return _TABLE.get(word[:-1])
    return None


def power(unit: Unit, exponent: int) -> Unit:
    return unit[0] ** exponent, tuple((name, count * exponent) for name, count in unit[1])


def product(first: Unit, second: Unit) -> Unit:
    counts = dict(first[1])
    for name, count in second[1]:
        counts[name] = counts.get(name, 0) + count
    return first[0] * second[0], tuple(sorted((name, count) for name, count in counts.items() if count))
