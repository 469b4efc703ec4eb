"""Families of small coding tasks, by level:

1   one expression: arithmetic, one pass over numbers, one operation on a text
2   two steps: filter and map, text and words, digits, lists in order
3   a loop with a state: counting, parsing, runs, brackets, encodings, pairs
"""

from __future__ import annotations

import random

from environments.code_sandbox.sketch import WORDS, Choice, Family, Parameters, Sketch

XS: Parameters = (("xs", "ints"),)
S: Parameters = (("s", "text"),)
WS: Parameters = (("ws", "words"),)
N: Parameters = (("n", "int"),)


def predicate(rng: random.Random) -> tuple[str, str, tuple[int, ...]]:
    """On x: in words after "numbers", in Python, and the numbers around which it changes."""
    k, d = rng.randint(1, 9), rng.randint(2, 5)
    return rng.choice(
        [
            (f"above {k}", f"x > {k}", (k,)),
            (f"below {k}", f"x < {k}", (k,)),
            (f"of at least {k}", f"x >= {k}", (k,)),
            (f"of at most {k}", f"x <= {k}", (k,)),
            ("that are even", "x % 2 == 0", (2, 3)),
            ("that are odd", "x % 2 == 1", (2, 3)),
            (f"divisible by {d}", f"x % {d} == 0", (d, 2 * d)),
            (f"other than {k}", f"x != {k}", (k,)),
            ("that are negative", "x < 0", (0,)),
        ]
    )


# ---- level 1


def arithmetic(rng: random.Random) -> Sketch:
    p, q, k = rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 9)
    text, body = rng.choice(
        [
            (f"{p} times a, plus b", f"{p} * a + b"),
            (f"a times b, minus {k}", f"a * b - {k}"),
            (f"{p} times a minus {q} times b", f"{p} * a - {q} * b"),
            (f"the sum of a and b, times {p}", f"(a + b) * {p}"),
            (f"the larger of a and b, plus {k}", f"max(a, b) + {k}"),
            (f"the smaller of a and b, minus {k}", f"min(a, b) - {k}"),
            (f"how far a and b are apart, times {p}", f"abs(a - b) * {p}"),
            (f"the remainder of a + b divided by {p}, from 0 to {p - 1}", f"(a + b) % {p}"),
            (f"a squared plus {k} times b", f"a * a + {k} * b"),
        ]
    )
    return Sketch(text, (("a", "int"), ("b", "int")), f"return {body}", "int", body, near=(p, q, k))


def fold(rng: random.Random) -> Sketch:
    words, test, near = predicate(rng)
    choices: list[Choice] = [
        (f"the sum of the numbers in xs {words}", f"sum(x for x in xs if {test})", "int"),
        (f"how many numbers in xs are {words.removeprefix('that are ')}", f"sum(1 for x in xs if {test})", "int"),
        (f"the numbers in xs {words}, in their order", f"[x for x in xs if {test}]", "ints"),
        (f"the largest number in xs {words}, or 0 if none", f"max((x for x in xs if {test}), default=0)", "int"),
        (f"the smallest number in xs {words}, or 0 if none", f"min((x for x in xs if {test}), default=0)", "int"),
        (f"whether xs has only numbers {words}", f"all({test} for x in xs)", "bool"),
        (f"whether xs has a number {words}", f"any({test} for x in xs)", "bool"),
    ]
    text, body, result = rng.choice(choices)
    return Sketch(text, XS, f"return {body}", result, f"x for x in xs if {test}", near=near)


def each(rng: random.Random) -> Sketch:
    k = rng.randint(2, 9)
    words, body = rng.choice(
        [
            (f"each number in xs times {k}", f"[x * {k} for x in xs]"),
            (f"each number in xs plus {k}", f"[x + {k} for x in xs]"),
            ("the squares of the numbers in xs", "[x * x for x in xs]"),
            ("xs from smallest to largest", "sorted(xs)"),
            ("xs from largest to smallest", "sorted(xs, reverse=True)"),
            ("xs in reverse order", "xs[::-1]"),
            (f"the first {k} numbers in xs", f"xs[:{k}]"),
            (f"all of xs but the first {k} numbers", f"xs[{k}:]"),
            (f"the last {k} numbers in xs (all if there are fewer)", f"xs[-{k}:]"),
        ]
    )
    long = tuple(range(k + 3))
    return Sketch(words, XS, f"return {body}", "ints", body, near=(k,), inputs=((list(long),), ([3, 1, 2],)))


def text_step(rng: random.Random) -> Sketch:
    k, letter = rng.randint(1, 4), rng.choice("abcde")
    choices: list[Choice] = [
        ("s in reverse order", "s[::-1]", "text"),
        ("s in capitals", "s.upper()", "text"),
        (f"how often the letter {letter} stands in s", f"s.count({letter!r})", "int"),
        (f"the first {k} characters of s", f"s[:{k}]", "text"),
        (f"s without its first {k} characters", f"s[{k}:]", "text"),
        (f"s with every {letter} made x", f"s.replace({letter!r}, 'x')", "text"),
        (f"s without any {letter}", f"s.replace({letter!r}, '')", "text"),
        (f"whether s begins with {letter}", f"s.startswith({letter!r})", "bool"),
        (f"whether s ends with {letter}", f"s.endswith({letter!r})", "bool"),
        (f"the length of s plus {k}", f"len(s) + {k}", "int"),
        (f"s repeated {k + 1} times", f"s * {k + 1}", "text"),
    ]
    text, body, result = rng.choice(choices)
    texts = (f"{letter}b{letter}", "abcdeedcba", f"x{letter}", f"{letter}x", "bcdea")
    return Sketch(text, S, f"return {body}", result, body, texts=texts, letters="abcde")


# ---- level 2


def filter_map(rng: random.Random) -> Sketch:
    words, test, near = predicate(rng)
    k = rng.randint(2, 9)
    of, value = rng.choice(
        [
            ("the squares", "x * x"),
            (f"{k} times each", f"{k} * x"),
            (f"each plus {k}", f"x + {k}"),
            ("the sizes (without sign)", "abs(x)"),
        ]
    )
    choices: list[Choice] = [
        (f"the sum of {of} of the numbers in xs {words}", f"sum({value} for x in xs if {test})", "int"),
        (f"{of} of the numbers in xs {words}, in their order", f"[{value} for x in xs if {test}]", "ints"),
        (
            f"the largest of {of} of the numbers in xs {words}, or 0 if none",
            f"max(({value} for x in xs if {test}), default=0)",
            "int",
        ),
    ]
    text, body, result = rng.choice(choices)
    return Sketch(text, XS, f"return {body}", result, f"{value} for x in xs if {test}", near=near)


def order(rng: random.Random) -> Sketch:
    k = rng.randint(2, 4)
    choices: list[Choice] = [
        ("the different numbers in xs, from smallest to largest", "sorted(set(xs))", "ints"),
        ("how many different numbers xs has", "len(set(xs))", "int"),
        ("the largest minus the smallest number in xs, or 0 if it is empty", "max(xs) - min(xs) if xs else 0", "int"),
        (f"every number of xs at an index that {k} divides (the first has index 0)", f"xs[::{k}]", "ints"),
        (f"the sum of the {k} largest numbers in xs (of all if there are fewer)", f"sum(sorted(xs)[-{k}:])", "int"),
        (f"the {k} smallest numbers in xs, smallest first (all if there are fewer)", f"sorted(xs)[:{k}]", "ints"),
        ("each number minus the one before it, from the second on", "[b - a for a, b in zip(xs, xs[1:])]", "ints"),
        ("whether xs never goes down from one number to the next", "all(a <= b for a, b in zip(xs, xs[1:]))", "bool"),
        ("whether xs always goes up from one number to the next", "all(a < b for a, b in zip(xs, xs[1:]))", "bool"),
        ("how often a number in xs is larger than the one before it", "sum(a < b for a, b in zip(xs, xs[1:]))", "int"),
        ("each number in xs times its index (the first has index 0)", "[i * x for i, x in enumerate(xs)]", "ints"),
        (f"xs with its first {k} numbers moved to the end", f"xs[{k}:] + xs[:{k}]", "ints"),
    ]
    text, body, result = rng.choice(choices)
    inputs = (([1, 2, 2, 3, 4, 5],), ([5, 3, 3, 1, 7, 2],), ([1, 2, 3, 4, 5, 6],), ([2, 1],))
    return Sketch(text, XS, f"return {body}", result, body, inputs=inputs)


def word_list(rng: random.Random) -> Sketch:
    k, letter = rng.randint(2, 4), rng.choice("abeo")
    choices: list[Choice] = [
        (f"the words in ws longer than {k} letters", f"[w for w in ws if len(w) > {k}]", "words"),
        (f"how many words in ws have at most {k} letters", f"sum(len(w) <= {k} for w in ws)", "int"),
        (f"the words in ws that contain {letter}", f"[w for w in ws if {letter!r} in w]", "words"),
        (f"the words in ws without {letter}, from a to z", f"sorted(w for w in ws if {letter!r} not in w)", "words"),
        ("each word in ws in reverse order", "[w[::-1] for w in ws]", "words"),
        ("the first letters of the words in ws as one text", "''.join(w[0] for w in ws)", "text"),
        ("how many letters the words in ws have together", "sum(len(w) for w in ws)", "int"),
        (
            "the longest word in ws, the first of equally long ones, or '' if empty",
            "max(ws, key=len, default='')",
            "text",
        ),
        (
            "the words in ws, shortest first, equally long ones from a to z",
            "sorted(ws, key=lambda w: (len(w), w))",
            "words",
        ),
        ("the different words in ws, from a to z", "sorted(set(ws))", "words"),
        ("the words in ws with a capital first letter", "[w.capitalize() for w in ws]", "words"),
    ]
    text, body, result = rng.choice(choices)
    texts = (*rng.sample(WORDS, 6), "ab", "abe", "oboe", "beobab", "z")
    return Sketch(text, WS, f"return {body}", result, body, texts=texts)


def digits(rng: random.Random) -> Sketch:
    d, k = rng.randint(1, 9), rng.randint(2, 6)
    choices: list[Choice] = [
        ("the sum of the digits of n", "sum(int(c) for c in str(n))", "int"),
        (f"how often the digit {d} stands in n", f"str(n).count('{d}')", "int"),
        ("the largest digit of n", "max(int(c) for c in str(n))", "int"),
        ("the digits of n as a list", "[int(c) for c in str(n)]", "ints"),
        ("n with its digits in reverse order", "int(str(n)[::-1])", "int"),
        (
            "all divisors of n from 1 to n, smallest first (none of 0)",
            "[d for d in range(1, n + 1) if n % d == 0]",
            "ints",
        ),
        ("whether n is a prime number", "n > 1 and all(n % d for d in range(2, n))", "bool"),
        (
            f"the sum of the numbers from 1 to n that {k} divides",
            f"sum(x for x in range(1, n + 1) if x % {k} == 0)",
            "int",
        ),
        (f"the multiples of {k} from {k} up to n", f"list(range({k}, n + 1, {k}))", "ints"),
    ]
    text, body, result = rng.choice(choices)
    high = 60 if "range(1, n + 1) if" in body or "list(range" in body else 500  # short lists
    inputs = tuple((n,) for n in (0, 1, 2, 4, 9, 10, 25, 97, 101, 110 + d, 10 * d, 3 * k, 3 * k + 1, 499) if n <= high)
    return Sketch(text, N, f"return {body}", result, body, low=0, high=high, near=(k, d), inputs=inputs)


def text_words(rng: random.Random) -> Sketch:
    k = rng.randint(2, 4)
    choices: list[Choice] = [
        ("how many vowels (a, e, i, o, u) s has", "sum(c in 'aeiou' for c in s)", "int"),
        ("s without its vowels (a, e, i, o, u)", "''.join(c for c in s if c not in 'aeiou')", "text"),
        ("whether s reads the same backwards", "s == s[::-1]", "bool"),
        ("the words of s in reverse order, one space between", "' '.join(s.split()[::-1])", "text"),
        ("how many words s has (spaces are between words)", "len(s.split())", "int"),
        (
            "the different letters of s from a to z, without spaces, as one text",
            "''.join(sorted(set(s) - {' '}))",
            "text",
        ),
        (f"every letter of s at an index that {k} divides (the first has index 0)", f"s[::{k}]", "text"),
        ("the words of s with a hyphen between", "'-'.join(s.split())", "text"),
    ]
    text, body, result = rng.choice(choices)
    texts = ("noon", "level", "abca", "fee fi fo", "a", "queue up", "eel ate tea", "no on")
    return Sketch(text, S, f"return {body}", result, body, texts=texts, letters="abeinou ")


LEVEL_1: tuple[Family, ...] = (arithmetic, fold, each, text_step)
LEVEL_2: tuple[Family, ...] = (filter_map, order, word_list, digits, text_words)
