r"""Where answers stand: the last label's line, else the last box; and what of it is dress."""

import time

import pytest

from fipo_jax.rewards import answers


@pytest.mark.parametrize(
  ("response", "line"),
  [
    ("so\nAnswer: 12", "12"),
    ("answer :12", "12"),
    ("**Answer:** 12", "12"),
    ("**Answer**: 12", "12"),
    ("__Answer:__ 12", "12"),
    ("**Answer: 12**", "12"),  # emphasis that began before the label
    ("Answer: 3\nno, Answer: 4", "4"),
    ("Answer: 3\nand 4", "3"),
    ("Answer:\n\n12\nsince", "12"),
    ("Answer: $12$.", "12"),
    ("Answer: **$12$**", "12"),
    ("Answer: `12`", "12"),
    (r"Answer: \(12\).", "12"),
    ("Answer:\n$$\n12\n$$\nas said", "12"),
    ("Answer:\n\\[\nx = 12\n\\]", "x = 12"),
    ("Answer:\n```\n12\n```", "12"),
    ("Answer: $\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}$\nso", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    (r"Answer: \boxed{12}", "12"),
    (r"Answer: \boxed{1} or \boxed{2}", r"\boxed{1} or \boxed{2}"),
    ("<answer>Answer: 12</answer>", "12"),
    (r"it is \boxed{12}", "12"),
    (r"\boxed{5}. No: \boxed{6}.", "6"),
    (r"\boxed{5}\boxed{6}", "6"),
    (r"\boxed{\frac{1}{2}} done", r"\frac{1}{2}"),
    (r"\fbox {12}", "12"),
    (r"\boxed{\{1\}}", r"\{1\}"),
    (r"\boxed{5} Answer: 6", "6"),
    (r"Answer: \boxed{5} Answer:", "5"),  # nothing after the label
    (r"\boxed{12", None),
    ("12", None),
    ("", None),
    ("Answer: ", None),
    ("Answer: ...", "..."),
    ("Answer: $1$ and $2$", "$1$ and $2$"),
    ("Answer: 2*x*", "2*x*"),
  ],
)
def test_answer_line(response, line):
  assert answers.answer_line(response) == line


def test_after_label_keeps_all_lines():
  assert answers.after_label("Answer: 3\nand 4\n") == "3\nand 4"


@pytest.mark.parametrize(
  "text",
  [
    ". " * 200_000, "$" * 400_000, "*_" * 200_000, r"\boxed{" * 60_000, "Answer:" * 60_000, "answer " * 60_000,
    "{" * 400_000,
  ],
)
def test_hostile_text_costs_its_length(text):
  begin = time.process_time()
  answers.answer_line(f"Answer: {text}")
  answers.answer_line(f"\\boxed{{{text}}}")
  assert time.process_time() - begin < 2.0
