"""Replies as judges write them, and what a careful person reads: the verdict, or None."""

from __future__ import annotations

from typing import Any

BRACKETS = r"\[\[\s*(?P<label>[^\[\]\n]{1,12}?)\s*\]\]"
OUTPUT = r"(?i:\boutput\s+\()(?P<label>\w+)(?i:\)\s+is\s+better)"
RESULT = r"\[RESULT\]\W{0,4}(?P<label>\w+)"
SCORE = r"\[RESULT\]\W{0,4}(?P<rating>[-+]?[\d.,]+)"
RATING = r"\[\[\s*(?P<rating>[^\[\]\n]{1,20}?)\s*\]\]"
LONG = "The answer goes on for a while, so that what is copied from it is no coincidence. "

#: labels A, B, C in double brackets: reply → label
IN_BRACKETS: list[tuple[str, str | None]] = [
    ("[[A]]", "A"), ("[[B]]", "B"), ("[[C]]", "C"), ("[[ A ]]", "A"), ("[[a]]", "A"), ("[[\tB\t]]", "B"),
    ("Assistant A is better. [[A]]", "A"), ("[[A]] because it is right.", "A"), ("**[[B]]**", "B"),
    ("Final verdict: [[C]]", "C"), ("Verdict:\n\n[[A]]\n", "A"), ("`[[B]]`", "B"), ("([[A]])", "A"),
    ("[[A]] [[B]]", "B"), ("[[B]] [[A]]", "A"), ("[[A]]. No, wait: [[B]].", "B"),
    ("At first [[B]] seems right, but the facts decide: [[A]]", "A"),
    ("[[A]] was my draft; on a second look I change it to [[C]]", "C"),
    ("I first wrote [[C]].\nCorrection: [[B]]", "B"), ("[[A]]\n[[A]]\n[[A]]", "A"),
    ("[[D]]", None), ("[[A]] [[D]]", None), ("[[]]", None), ("[[ ]]", None), ("[[1]]", None),
    ("[[A or B]]", None), ("[[A/B]]", None), ("[[A, B]]", None), ("[[A and B]]", None), ("[[Tie]]", None),
    ("[A]", None), ("[[A]", None), ("[A]]", None), ("[[A", None), ("A]]", None), ("((A))", None),
    ("A", None), ("", None), ("   \n\t ", None), ("I cannot decide.", None), ("Both are fine.", None),
    ("[[AA]]", None), ("[[Assistant A]]", None), ("[[N/A]]", None), ("[[None]]", None), ("[[null]]", None),
    ("［［Ａ］］", "A"), ("[[Ａ]]", "A"), ("[[А]]", None), ("[[Α]]", None), ("[[甲]]", None),
    ("[\u200b[A]]", "A"), ("[[A\u200b]]", "A"), ("\u202e[[A]]\u202c", "A"), ("[[\ufeffB]]", "B"),
    ("[[\u2066C\u2069]]", "C"), ("[[A]]\u200b[[B]]", "B"),
    ("<think>[[A]]</think>[[B]]", "B"), ("<think>[[A]]</think>", None), ("<think>[[A]]", None),
    ("<think>one</think><think>[[A]]</think>[[C]]", "C"), ("<think></think>[[A]]", "A"),
    ("<think>\n[[B]] no [[A]]\n</think>\n\nThe first is right. [[A]]", "A"), ("[[A]]<think>[[B]]", None),
    ("[[A]]\n\nP.S. nothing else.", "A"), ("[[A]] [[B]] [[C]] are the labels. Mine is [[B]].", "B"),
    ("[ [A] ]", None), ("{{A}}", None), ("<<A>>", None), ('{"verdict": "[[A]]"}', "A"), ("[[\nA\n]]", "A"),
    ("|[[A]]|", "A"), ("1. [[B]]", "B"), ("# [[A]]", "A"), ("[[A]]]", "A"), ("[[[A]]]", "A"),
    ("[[*A*]]", "A"), ("[[\"A\"]]", "A"), ("[[A.]]", "A"), ("[[a.]]", "A"), ("[[-A]]", None),
    ("[[A]]\x00", "A"), ("\r\n[[B]]\r\n", "B"), ("[[B]]" * 50, "B"), ("[[A]]" * 50 + "[[C]]", "C"),
]  # fmt: skip

#: LLMBar's form, labels a and b
AS_OUTPUT: list[tuple[str, str | None]] = [
    ("Output (a) is better", "a"), ("Output (b) is better.", "b"), ("output (a) is better", "a"),
    ("OUTPUT (B) IS BETTER", "b"), ("Output (a)  is  better", "a"), ("**Output (a) is better**", "a"),
    ("Therefore, Output (b) is better.", "b"), ("Output (c) is better", None), ("Output (a)", None),
    ("Output a is better", None), ("Output (a) is worse", None), ("Output (a) is not better", None),
    ("Neither output is better", None), ("Output (a) is better than Output (b)", "a"),
    ("Output (a) is better in style. In content Output (b) is better.", "b"),
    ("Output (b) is better.\n\nOutput (a) is too long.", "b"), ("Output () is better", None),
    ("Output (ab) is better", None), ("Output(a) is better", None), ("Output (a) might be better", None),
    ("Output\n(a) is better", "a"), ("Output (a)\nis better", "a"), ("Output (ａ) is better", "a"),
    ("Both Output (a) and Output (b) are good.", None), ("", None), ("is better", None),
    ("Output (a) is better. Wait. Output (b) is better.", "b"), ("<think>Output (a) is better</think>", None),
    ("<think>Output (a) is better</think>Output (b) is better", "b"), ("Output (1) is better", None),
    ("Output (A) is better", "a"), ("Output (a) is the better one", None), ("(a) is better", None),
    ("Output (a) is bettering", "a"), ("Die Ausgabe (a) ist besser", None), ("Output (á) is better", None),
]  # fmt: skip

#: "[RESULT] A" or B
AS_RESULT: list[tuple[str, str | None]] = [
    ("Feedback: it is right. [RESULT] A", "A"), ("[RESULT] B", "B"), ("[RESULT]A", "A"), ("[RESULT]: B", "B"),
    ("[RESULT] (A)", "A"), ("[RESULT] **B**", "B"), ("[RESULT]\nA", "A"), ("[RESULT] a", "A"),
    ("[RESULT] C", None), ("[RESULT]", None), ("[RESULT] ", None), ("RESULT A", None), ("[result] A", None),
    ("[RESULT] A [RESULT] B", "B"), ("[RESULT] Response A", None), ("[RESULT] 1", None), ("[RESULT] tie", None),
    ("[RESULT] A.", "A"), ("[RESULT] AB", None), ("Feedback: [RESULT] A or B. [RESULT] B", "B"),
]  # fmt: skip

#: the label alone: A, B or C
BARE: list[tuple[str, str | None]] = [
    ("A", "A"), ("B", "B"), ("C", "C"), ("a", "A"), (" A ", "A"), ("A.", "A"), ("A\n", "A"), ("**A**", "A"),
    ("`B`", "B"), ('"A"', "A"), ("'B'", "B"), ("(A)", "A"), ("[B]", "B"), ("[[C]]", "C"), ("Answer: A", "A"),
    ("answer: b", "B"), ("Verdict: B", "B"), ("The answer is A.", "A"), ("The better one is B", "B"),
    ("My choice: C", "C"), ("Final answer: A", "A"), ("Winner: B!", "B"), ("A!", "A"), ("A:", "A"),
    ("D", None), ("AB", None), ("A B", None), ("A or B", None), ("A/B", None), ("A, B", None), ("", None),
    ("\n", None), ("I think A is better because it is right", None), ("Neither", None), ("1", None),
    ("A is wrong, B is right", None), ("not A", None), ("Ａ", "A"), ("\u200bA", "A"), ("A\u200b", "A"),
    ("<think>B</think>A", "A"), ("<think>B</think>", None), ("<think>A", None), ("Α", None), ("-", None),
    ("?", None), ("A?", None), ("A B C", None), ("None", None), ("null", None), ("\u202aA\u202c", "A"),
]  # fmt: skip

#: a rating from 1 to 10 in double brackets
RATED: list[tuple[str, float | None]] = [
    ("[[5]]", 5), ("Rating: [[8]]", 8), ("[[10]]", 10), ("[[1]]", 1), ("[[ 7 ]]", 7), ("[[7.5]]", 7.5),
    ("[[7,5]]", 7.5), ("[[7.]]", 7), ("[[+7]]", 7), ("[[07]]", 7), ("[[7/10]]", 7), ("[[7 / 10]]", 7),
    ("[[7 out of 10]]", 7), ("**[[6]]**", 6), ("[[3]] … on reflection [[9]]", 9), ("[[9]] no: [[3]]", 3),
    ("[[0]]", None), ("[[11]]", None), ("[[-5]]", None), ("[[100]]", None), ("[[1e1]]", None), ("[[NaN]]", None),
    ("[[inf]]", None), ("[[N/A]]", None), ("[[n/a]]", None), ("[[]]", None), ("[[ ]]", None), ("[[?]]", None),
    ("[[five]]", None), ("[[3-4]]", None), ("[[3 to 4]]", None), ("[[3–4]]", None), ("[[3 or 4]]", None),
    ("[[5/5]]", None), ("[[4 out of 5]]", None), ("[[5%]]", None), ("[[5 stars]]", None), ("[[x5]]", None),
    ("[[5]] [[eleven]]", None), ("[[5]] [[12]]", None), ("[[٥]]", 5), ("[[५]]", 5), ("[[５]]", 5), ("[[五]]", None),
    ("[[²]]", 2), ("[[V]]", None), ("[[1,000]]", None), ("[[1.2.3]]", None), ("[[5]", None), ("[5]", None),
    ("5", None), ("", None), ("Rating: 5", None), ("<think>[[2]]</think>[[8]]", 8), ("<think>[[2]]</think>", None),
    ("<think>[[2]]", None), ("[[\u200b8]]", 8), ("[[8\u200b]]", 8), ("\u202e[[8]]", 8), ("［［8］］", 8),
    ("[[--5]]", None), ("[[5 5]]", None), ("[[0x5]]", None), ("[[*5*]]", 5), ("[['5']]", 5), ("[[true]]", None),
    ("[[null]]", None), ("[[9.99]]", 9.99), ("[[10.01]]", None), ("[[0.99]]", None), ("[[10]]!", 10),
    ("```\n[[4]]\n```", 4), ("|[[4]]|", 4), ("[[5]]" * 20, 5), ("[[1]]" * 20 + "[[2]]", 2), ("[[ten]]", None),
]  # fmt: skip

#: a rating from 1 to 5, alone
BARE_RATED: list[tuple[str, float | None]] = [
    ("4", 4), (" 4 ", 4), ("4.", 4), ("4\n", 4), ("**4**", 4), ("(4)", 4), ("[4]", 4), ("Rating: 4", 4),
    ("rating 4", 4), ("Score: 3.5", 3.5), ("3,5", 3.5), ("4/5", 4), ("4 / 5", 4), ("4 out of 5", 4),
    ("The rating is 4.", 4), ("My score: 2", 2), ("+3", 3), ("٤", 4), ("４", 4), ("\u200b4", 4),
    ("0", None), ("6", None), ("-1", None), ("4/10", None), ("4 out of 10", None), ("3-4", None), ("3–4", None),
    ("", None), (" ", None), ("four", None), ("N/A", None), ("nan", None), ("NaN", None), ("4 5", None),
    ("between 3 and 4", None), ("I give it a 4 for style and a 2 for content", None), ("4 stars and 2 stars", None),
    ("1e0", None), ("0x4", None), ("44", None), ("4.5.1", None), ("--4", None), ("5!", 5), ("四", None),
    ("−7", None), ("–7", None), ("<4", None), (">4", None), ("<think>1</think>5", 5), ("<think>1</think>", None), ("<think>1", None), ("?", None), ("4?", None),
]  # fmt: skip

#: the field "rating", 1 to 5, of a JSON object
JSON_RATED: list[tuple[str, float | None]] = [
    ('{"rating": 4}', 4), ('{"rationale": "so", "rating": 4}', 4), ('{"rating": 4, "rationale": "so"}', 4),
    (' \n{"rating": 4}\n ', 4), ('```json\n{"rating": 4}\n```', 4), ('```\n{"rating": 4}\n```', 4),
    ('Here it is: {"rating": 4}', 4), ('{"rating": 4} I hope that helps.', 4), ('{"rating": 4.0}', 4),
    ('{"rating": 3.5}', 3.5), ('{"rating": "4"}', 4), ('{"rating": "4/5"}', 4), ("{'rating': 4}", 4),
    ('{"rating": 4,}', 4), ('{"rating": 4, /* good */ "x": 1}', 4), ('{"rating": 4 // good\n}', 4),
    ("{rating: 4}", 4), ('{"rationale": "a } b", "rating": 2}', 2), ('{"rationale": "a { b", "rating": 2}', 2),
    ('{"rationale": "say \\"5\\"", "rating": 2}', 2), ('{"rationale": {"rating": 5}, "rating": 2}', 2),
    ('{"rationale": "{\\"rating\\": 5}", "rating": 1}', 1), ('{"rationale": "it\'s so", "rating": 3}', 3),
    ('{"rating": 2}\n{"rating": 4}', 4), ('{"a": 1} {"rating": 4}', 4), ('{"rationale": "a\nb", "rating": 4}', 4),
    ('<think>{"rating": 1}</think>{"rating": 5}', 5), ('{"rating": 5, "other": [1, 2, {"rating": 1}]}', 5),
    ('{"rating": 0}', None), ('{"rating": 6}', None), ('{"rating": -1}', None), ('{"rating": null}', None),
    ('{"rating": true}', None), ('{"rating": NaN}', None), ('{"rating": Infinity}', None), ('{"rating": "NaN"}', None),
    ('{"rating": "good"}', None), ('{"rating": "3-4"}', None), ('{"rating": ""}', None), ('{"rating": [4]}', None),
    ('{"rating": {"value": 4}}', None), ('{"Rating": 4}', None), ('{"score": 4}', None), ("{}", None), ("[]", None),
    ("[4]", None), ("4", None), ('"4"', None), ("", None), ("null", None), ("no JSON", None), ("{", None),
    ('{"rating": 4', None), ('{"rating":', None), ('{"rating"', None), ('{"rationale": "it is', None),
    ('{"rationale": "x", "rating": 4', None), ('{"rating": 4, "rating": 2}', None), ('{"rating": 4}}', 4),
    ('{{"rating": 4}}', None), ('{"rating": 4 "x": 1}', None), ('{"rating"; 4}', None), ('{"rating": four}', None),
    ('{"rating": 4;}', None), ('{"rating": 44}', None), ('{"rating": 1e400}', None), ('{"rating": "N/A"}', None),
    ('<think>{"rating": 4}', None), ('{"rating": 04}', None), ('{"rating": +4}', 4), ('{"rating": .5}', None),
    ('{"rating": 7} and I was wrong, it should be 3', None), ('{"rating": 4}\n{"rating": 3', None),
    ('{"rating": 4} {"rating":', None), ('{"rating": 0x4}', 4), ('\ufeff{"rating": 4}', 4), ('{"rating": ４}', 4), ('{“rating”: 4}', None),
]  # fmt: skip

#: A, B, C in order
RANKED: list[tuple[str, Any]] = [
    ("A > B > C", (("A",), ("B",), ("C",))), ("C>B>A", (("C",), ("B",), ("A",))),
    ("B > A = C", (("B",), ("A", "C"))), ("A = B = C", (("A", "B", "C"),)), ("Ranking: A > C > B", (("A",), ("C",), ("B",))),
    ("**B > A > C**", (("B",), ("A",), ("C",))), ("[B] > [A] > [C]", (("B",), ("A",), ("C",))),
    ("A > B > C\nNo: C > A > B", (("C",), ("A",), ("B",))), ("I say A > B > C.", (("A",), ("B",), ("C",))),
    ("<think>A > B > C</think>B > C > A", (("B",), ("C",), ("A",))), ("Ａ > Ｂ > Ｃ", (("A",), ("B",), ("C",))),
    ("b > a > c", (("B",), ("A",), ("C",))), ("A > B", None), ("A > B > C > D", None), ("A > B > B", None), ("A > B > C > A", None), ("A, B, C", None),
    ("", None), ("A", None), ("A B C", None), ("1 > 2 > 3", None), ("A < B < C", None), ("> A > B > C", (("A",), ("B",), ("C",))),
    ("A > B > ", None), ("A >> B >> C", None), ("A > B > D", None), ("none is better", None), ("<think>A > B > C", None),
    ("X > Y > Z", None), ("A > B; C", None), ("A ≻ B ≻ C", (("A",), ("B",), ("C",))),
]  # fmt: skip

#: the default comparison's free reply: A, B or C after "Verdict:"
VERDICTS: list[tuple[str, str | None]] = [
    ("Verdict: A", "A"), ("Verdict: **B**", "B"), ("Better: C.", "C"), ("The verdict is: A. B is worse.", "A"),
    ("A is better. B is worse.", None), ("B is better, A lacks detail", None), ("A is better - B is worse", None),
    ("Neither is better. A has errors", None), ("Which is better? A is longer.", None), ("Verdict: A or B", None),
    ("Verdict: A and B are equal", None), ("Verdict: A/B", None), ("Verdict: A response is needed", None),
    ("Verdict: A. But I am not sure; I cannot decide.", None), ("Verdict: D", None), ("Verdict: A\nVerdict: B", "B"),
]  # fmt: skip

#: the default rating's free reply, 1 to 10
RATINGS: list[tuple[str, float | None]] = [
    ("Rating: 7", 7), ("Rating: 7/10", 7), ("**Rating:** 8", 8), ("Rating: 7.", 7), ("Rating: -7", None),
    ("Rating: −7", None), ("Rating: (-7)", None), ("Rating: .5", None), ("Rating: 1e400", None), ("Rating: 1 0", None),
    ("Rating: 7½", None), ("Rating: 7%", None), ("Rating: 4x", None), ("Rating: 3\nI take it back.", None),
    ("Rating: 3. On reflection, that is too low.", None), ("Rating: <7", None),
]  # fmt: skip

#: recorded replies of any style: what was preferred as shown
RECORDED: list[tuple[str, str | None]] = [
    ("[[A]]\nActually, I take that back.", None), ("[[A]] — on reflection neither is better, so a tie.", None),
    ("It is not true that Output (a) is better.", None), ("I can't say that Output (a) is better", None),
    ("Output (a) is better than Output (b)? No.", None), ("Neither Output (a) is better nor Output (b) is better", None),
    ("Output (a) is better in tone. Overall, I choose Output (b).", "second"),
    ("Output (b) is better at rhyme, but overall Output (a) wins.", "first"), ('{"verdict": "A"}', "first"),
    ('{"verdict": "A", "verdict": "B"}', None), ("Tie", "tie"), ("[[Tie]]", "tie"), ("I choose A", "first"),
    ("I prefer Output (b).", "second"), ("A, because it is shorter", "first"), ("Response A", "first"),
    ("Assistant A is better", "first"), ("Output (b) is much better", "second"), ("Output (b) is clearly better", "second"),
    ("The verdict: A is good, but B better", None), ("It's a draw.", "tie"), ("Option B.", "second"),
]  # fmt: skip
