"""What a family of coding tasks draws: plain words, a solution, and inputs on which wrong programs show.

The same sketch becomes a function task (`f(xs)`, tested by calls) or a program that reads stdin and writes stdout.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Type = Literal["int", "ints", "text", "words", "bool"]
Parameters = tuple[tuple[str, Type], ...]
Choice = tuple[str, str, Type]  # in words, as an expression, and the type of its value
Arguments = tuple[Any, ...]
Family = Callable[[random.Random], "Sketch"]

WORDS = [
    "ant",
    "bee",
    "cat",
    "dog",
    "eel",
    "fox",
    "gnu",
    "hen",
    "ibis",
    "jay",
    "kite",
    "lark",
    "mole",
    "newt",
    "owl",
    "pig",
    "ray",
    "seal",
    "tern",
    "wasp",
    "apple",
    "level",
    "noon",
]
# How a program reads one line of each type, how it writes one, and what the task says of both.
READ = {
    "int": "int(input())",
    "ints": "list(map(int, input().split()))",
    "text": "input()",
    "words": "input().split()",
}
WRITE = {
    "int": "print({})",
    "text": "print({})",
    "bool": 'print("yes" if {} else "no")',
    "ints": "print(*{})",
    "words": "print(*{})",
}
LINE = {"int": "a number", "ints": "numbers", "text": "a text", "words": "words"}
OUTPUT = {"bool": " (yes or no)", "ints": " (with spaces between)", "words": " (with spaces between)"}


@dataclass(frozen=True, slots=True)
class Sketch:
    """`text` follows "returns" or "prints". `body` are the lines of the solution's function; `result` what it returns.

    `near` are numbers around which wrong solutions differ, `texts` and `letters` what texts are made of. `inputs`,
    where a family gives them, are arguments that matter and that chance would miss.
    """

    text: str
    parameters: Parameters
    body: str
    result: Type
    plan: str
    near: tuple[int, ...] = ()
    low: int = -9
    high: int = 20
    letters: str = "abcde "
    texts: tuple[str, ...] = ()
    inputs: tuple[Arguments, ...] = ()

    @property
    def names(self) -> str:
        return ", ".join(name for name, _ in self.parameters)

    @property
    def function(self) -> str:
        return f"def f({self.names}):\n{textwrap.indent(self.body, '    ')}\n"

    @property
    def program(self) -> str:
        """The solution as a program."""
        reads = "\n".join(f"{name} = {READ[kind]}" for name, kind in self.parameters)
        if self.body.startswith("return "):
            return f"{reads}\n{WRITE[self.result].format(self.body.removeprefix('return '))}\n"
        return f"{self.function}{reads}\n{WRITE[self.result].format(f'f({self.names})')}\n"

    def stdin(self, arguments: Arguments) -> str:
        """One line an argument."""
        return "".join(f"{show(value)}\n" for value in arguments)

    def candidates(self, rng: random.Random, num: int) -> list[Arguments]:
        """Arguments to test with: what the family gives, edges, then chance. All distinct."""
        made = list(self.inputs)
        made += [
            # Parameters take their edges in different order, so that they are told from each other.
            tuple(self._edge(kind, (edge + 2 * place) % 5) for place, (_, kind) in enumerate(self.parameters))
            for edge in range(5)
        ]
        while len(made) < num:
            made.append(tuple(self._draw(kind, rng) for _, kind in self.parameters))
        return list({repr(arguments): arguments for arguments in made}.values())

    def example(self, rng: random.Random) -> Arguments:
        """Arguments for the prompt: neither empty nor long."""
        long = [text for text in self.texts if len(text) > 2]
        return tuple(
            rng.choice(long) if kind == "text" and long else self._draw(kind, rng, low=3, high=5)
            for _, kind in self.parameters
        )

    def _number(self, rng: random.Random) -> int:
        if self.near and rng.random() < 0.5:
            number = rng.choice(self.near) + rng.choice((-1, 0, 0, 1))
            return min(max(number, self.low), self.high)
        return rng.randint(self.low, self.high)

    def _draw(self, kind: Type, rng: random.Random, low: int = 0, high: int = 8) -> Any:
        if kind == "int":
            return self._number(rng)
        num = rng.randint(low, high)
        if kind == "ints":
            return [self._number(rng) for _ in range(num)]
        if kind == "words":
            return [rng.choice(self.texts or WORDS) for _ in range(num)]
        if self.texts and rng.random() < 0.4:
            return rng.choice(self.texts)
        return "".join(rng.choice(self.letters) for _ in range(num)).strip()

    def _edge(self, kind: Type, index: int) -> Any:
        numbers = [self.low, self.high, *(near + step for near in self.near for step in (-1, 0, 1)), 0, 1]
        numbers = [number for number in numbers if self.low <= number <= self.high]
        if kind == "int":
            return numbers[index % len(numbers)]
        if kind == "ints":
            return [[], numbers[:1], numbers, [numbers[-1]] * 3, numbers[::-1]][index]
        if kind == "words":
            return [[], ["ant"], ["bee", "ant", "bee"], ["owl"] * 2, ["fox", "a", "seal"]][index]
        return ["", self.letters[0], self.letters.strip(), self.letters[:2] * 2, self.letters[0].upper()][index]


def lines(source: str) -> str:
    """The lines of a text that is indented as the code around it."""
    return textwrap.dedent(source).strip()


def show(value: Any) -> str:
    """A value as a program reads or writes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
