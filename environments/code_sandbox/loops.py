"""Families of level 3: a loop with a state. Loops are `for` over what is given, so no mutant of one runs for ever."""

from __future__ import annotations

import random

from environments.code_sandbox.families import LEVEL_1, LEVEL_2, WS, XS, N, S
from environments.code_sandbox.sketch import Arguments, Family, Sketch, lines


def most_frequent(rng: random.Random) -> Sketch:
    few = rng.random() < 0.5
    word, pick = ("smallest", "min") if few else ("largest", "max")
    body = lines(f"""
        if not xs:
            return 0
        most = max(xs.count(x) for x in xs)
        return {pick}(x for x in xs if xs.count(x) == most)
    """)
    text = f"the number that stands in xs most often, the {word} of several, or 0 if xs is empty"
    inputs = (([1, 2, 2, 1, 3],), ([3, 3, 1],), ([5, 4],), ([1, 1, 7, 7, 7],))
    return Sketch(text, XS, body, "int", f"count each; {pick} of the most", low=0, high=6, inputs=inputs)


def longest_run(rng: random.Random) -> Sketch:
    words, test = rng.choice(
        [
            ("of equal numbers", "x == before"),
            ("in which each number is larger than the one before", "x > before"),
            ("in which no number is smaller than the one before", "x >= before"),
        ]
    )
    body = lines(f"""
        best = run = 0
        before = None
        for x in xs:
            run = run + 1 if before is not None and {test} else 1
            before = x
            best = max(best, run)
        return best
    """)
    inputs = (([1, 1, 2, 2, 2, 1],), ([1, 2, 3, 1, 2],), ([3, 3, 4, 4, 1],), ([2, 2, 1, 1, 1],))
    return Sketch(
        f"the length of the longest stretch of xs {words}",
        XS,
        body,
        "int",
        f"run while {test}",
        low=0,
        high=4,
        inputs=inputs,
    )


def running(rng: random.Random) -> Sketch:
    words, step, start = rng.choice(
        [("sums", "total + x", "0"), ("largest numbers", "x if total is None else max(total, x)", "None")]
    )
    body = lines(f"""
        total, made = {start}, []
        for x in xs:
            total = {step}
            made.append(total)
        return made
    """)
    text = f"the running {words} of xs: at each place that of all numbers up to there"
    return Sketch(text, XS, body, "ints", f"total = {step}; append", inputs=(([3, 1, 4, 1, 5],), ([-1, -2],)))


def pairs_to(rng: random.Random) -> Sketch:
    k = rng.randint(3, 12)
    words, test = rng.choice(
        [(f"add up to {k}", f"xs[i] + xs[j] == {k}"), (f"differ by {k // 2}", f"abs(xs[i] - xs[j]) == {k // 2}")]
    )
    body = f"return sum({test} for i in range(len(xs)) for j in range(i + 1, len(xs)))"
    inputs = (([1, k - 1, 2, k - 2],), ([k // 2] * 3,), ([0, k, k],), ([1, 1 + k // 2, 1 - k // 2],))
    return Sketch(
        f"how many pairs of places in xs hold numbers that {words}",
        XS,
        body,
        "int",
        f"i < j with {test}",
        near=(k // 2, k),
        inputs=inputs,
    )


def brackets(rng: random.Random) -> Sketch:
    opening, closing = rng.choice([("(", ")"), ("[", "]"), ("<", ">")])
    deep = rng.random() < 0.5
    body = lines(f"""
        depth = deepest = 0
        for c in s:
            if c == '{opening}':
                depth += 1
            if c == '{closing}':
                depth -= 1
            deepest = max(deepest, depth)
            if depth < 0:
                return {-1 if deep else False}
        return {"deepest if depth == 0 else -1" if deep else "depth == 0"}
    """)
    right = f"each {opening} in s is closed by a later {closing}, and each {closing} closes one"
    text = f"how deep the {opening}{closing} in s are nested, or -1 unless {right}" if deep else f"whether {right}"
    texts = tuple(
        t.replace("(", opening).replace(")", closing)
        for t in ("()", ")(", "(())", "(()", "())", "a(b)c", "()()", "(()())", "")
    )
    return Sketch(
        text,
        S,
        body,
        "int" if deep else "bool",
        "depth up and down",
        texts=texts,
        letters=f"{opening}{closing}a",
        inputs=tuple((t,) for t in texts),
    )


def run_lengths(rng: random.Random) -> Sketch:
    texts = ("aaab", "a", "abab", "aabbb", "ccca")
    inputs = tuple((t,) for t in texts)
    if rng.random() < 0.5:
        body = lines("""
            made, run = '', 0
            for i, c in enumerate(s):
                run += 1
                if i + 1 == len(s) or s[i + 1] != c:
                    made += c + str(run)
                    run = 0
            return made
        """)
        text = "s with each stretch of one letter written as the letter and its length (aab is a2b1)"
        return Sketch(
            text, S, body, "text", "count the stretch; write at its end", texts=texts, letters="abc", inputs=inputs
        )
    body = lines("""
        made = ''
        for c in s:
            if not made or made[-1] != c:
                made += c
        return made
    """)
    text = "s with each stretch of one letter made one letter (aaba is aba)"
    return Sketch(text, S, body, "text", "skip what stands already", texts=texts, letters="abc", inputs=inputs)


def parse_sums(rng: random.Random) -> Sketch:
    mark = rng.choice(",;:")
    texts = tuple(t.replace(",", mark) for t in ("1,2,3", "4", ",5,,6", "10,-3", "7,x,8", "a,b", "12,30,,1", ","))
    words, test = rng.choice([("that are not empty", "part"), ("that consist of digits only", "part.isdigit()")])
    if test == "part":
        texts = tuple(t for t in texts if not set("xab") & set(t))
    body = f"return sum(int(part) for part in s.split('{mark}') if {test})"
    text = f"the sum of the whole numbers between the marks {mark} in s, of those parts {words}"
    return Sketch(
        text,
        S,
        body,
        "int",
        f"split at {mark}; int of parts",
        texts=texts,
        letters=f"1234{mark}{mark}",
        inputs=tuple((t,) for t in texts),
    )


def look_up(rng: random.Random) -> Sketch:
    key = rng.choice("abc")
    last = rng.random() < 0.5
    first = "" if last else f" and '{key}' not in found"
    body = lines(f"""
        found = {{}}
        for part in s.split():
            name, _, value = part.partition('=')
            if name == '{key}'{first}:
                found[name] = value
        return found.get('{key}', 'none')
    """)
    text = f"the value of {key} in a text like 'a=1 b=two', the {'last' if last else 'first'} of several, or 'none'"
    texts = (f"{key}=1 b=two", f"{key}=1 {key}=2", "x=3", f"x{key}=4 {key}=5", f"{key}=", "a=7 b=8 c=9", f"c={key} b=1")
    return Sketch(
        text,
        S,
        body,
        "text",
        "split; partition at =",
        texts=texts,
        letters="abc= 12",
        inputs=tuple((t,) for t in texts),
    )


def shift(rng: random.Random) -> Sketch:
    k = rng.randint(1, 25)
    body = lines(f"""
        made = ''
        for c in s:
            if 'a' <= c <= 'z':
                c = chr((ord(c) - 97 + {k}) % 26 + 97)
            made += c
        return made
    """)
    text = f"s with each letter a to z moved {k} places on in the alphabet (after z comes a), all else as it is"
    texts = ("abc xyz", "z", "A z!", "hello", "{a}", "`")
    return Sketch(
        text, S, body, "text", f"ord + {k} mod 26", texts=texts, letters="abz Z", inputs=tuple((t,) for t in texts)
    )


def clock(rng: random.Random) -> Sketch:
    k = rng.randint(5, 180)
    body = lines(f"""
        hours, minutes = s.split(':')
        total = (int(hours) * 60 + int(minutes) + {k}) % 1440
        return f'{{total // 60:02}}:{{total % 60:02}}'
    """)
    times = tuple(f"{h:02}:{m:02}" for h, m in ((0, 0), (23, 59), (9, 5), (12, 30), (22, 45), (7, 8), (23, 0), (5, 55)))
    text = f"the time {k} minutes after s, which is like 09:05 (after 23:59 comes 00:00)"
    return Sketch(text, S, body, "text", f"minutes + {k} mod 1440", inputs=tuple((t,) for t in times))


def group_words(rng: random.Random) -> Sketch:
    words, key = rng.choice([("first letter", "w[0]"), ("last letter", "w[-1]"), ("length", "str(len(w))")])
    body = lines(f"""
        seen = {{}}
        for w in ws:
            seen[{key}] = seen.get({key}, 0) + 1
        return [name + ':' + str(seen[name]) for name in sorted(seen)]
    """)
    like = "3:2" if "len" in key else "a:2"
    text = f"for each {words} of the words in ws: it and the number of such words, like {like}, in sorted order"
    return Sketch(
        text, WS, body, "words", f"count by {key}", inputs=((["ant", "ape", "bee"],), (["bee", "ant", "ale"],))
    )


def steps_down(rng: random.Random) -> Sketch:
    k = rng.randint(2, 9)
    body = lines(f"""
        steps = 0
        for _ in range(40):
            if n <= 0:
                return steps
            n = n // 2 if n % 2 == 0 else n - {k}
            steps += 1
        return -1
    """)
    text = (
        f"how many steps n takes to be 0 or less, if a step halves an even n and takes {k} from an odd one; "
        "-1 if over 39"
    )
    inputs = tuple((n,) for n in (0, 1, 2, 3, k, 2 * k, 64, 100, 255, 999))
    return Sketch(text, N, body, "int", f"halve or minus {k}; count", low=0, high=1000, near=(k,), inputs=inputs)


def merge(rng: random.Random) -> Sketch:
    words, body = rng.choice(
        [
            ("the numbers that xs and ys share, each once, smallest first", "return sorted(set(xs) & set(ys))"),
            (
                "the numbers that stand in just one of xs and ys, each once, smallest first",
                "return sorted(set(xs) ^ set(ys))",
            ),
            (
                "xs and ys taken in turn, one of each, the rest of the longer one at the end",
                lines("""
                    n = min(len(xs), len(ys))
                    made = []
                    for a, b in zip(xs, ys):
                        made += [a, b]
                    return made + xs[n:] + ys[n:]
                """),
            ),
            ("the numbers of xs that do not stand in ys, in their order", "return [x for x in xs if x not in ys]"),
        ]
    )
    inputs: tuple[Arguments, ...] = (([1, 2, 3], [2, 4]), ([], [1, 1]), ([5, 5, 1], [5]), ([3, 1, 2], [1, 3, 9, 8]))
    return Sketch(
        words, (("xs", "ints"), ("ys", "ints")), body, "ints", body.split("\n")[0], low=0, high=6, inputs=inputs
    )


FAMILIES: dict[int, tuple[Family, ...]] = {
    1: LEVEL_1,
    2: LEVEL_2,
    3: (
        most_frequent,
        longest_run,
        running,
        pairs_to,
        brackets,
        run_lengths,
        parse_sums,
        look_up,
        shift,
        clock,
        group_words,
        steps_down,
        merge,
    ),
}
