"""Questions that are trained on and evaluated: the same, and those that share a passage."""

from fipo_jax.evaluation.overlap import Overlap

TALE = "alice has seven red apples and gives three of them to her brother bob at noon".split()


def ask(*questions):
  return [{"question": q} for q in questions]


def found(evaluated, trained, name="a"):
  overlap = Overlap()
  overlap.add(name, evaluated)
  for record in trained:
    overlap.see(record)
  return overlap


def test_the_same_but_for_case_and_blanks():
  got = found(["What is 2 + 3?", "What is 2 - 3?"], ask("what  is 2 + 3?", "What is 2 * 3?")).found()
  assert got == {"a": {"prompts": 2, "same": [0], "shared": []}}


def test_thirteen_words_in_a_row_are_shared_and_twelve_are_not():
  text = " ".join
  inside = f"Yesterday, {text(TALE[1:14]).title()}!"  # other case and punctuation
  less = f"Yesterday {text(TALE[1:13])} alone"
  assert found([text(TALE)], ask(inside)).found()["a"]["shared"] == [0]
  assert found([text(TALE)], ask(less)).found()["a"]["shared"] == []
  said = [{"role": "system", "content": text(TALE)}, {"role": "user", "content": less}]
  assert found([text(TALE)], [{"messages": said}]).found()["a"]["shared"] == []


def test_how_a_set_is_worded_is_no_passage():
  """What many questions of a set have in common, instructions above all, training has too."""
  wording = " ".join(TALE)
  trained = ask(f"{wording} 99")
  assert found([f"{wording} {i}" for i in range(2)], trained).found()["a"]["shared"] == [0, 1]
  assert found([f"{wording} {i}" for i in range(3)], trained).found()["a"]["shared"] == []


def test_what_is_said():
  overlap = found(["one two", "three", "four"], ask("three", "five"))
  overlap.add("b", ["six"])
  overlap.see({"question": "seven"})
  assert overlap.notes() == [
    "overlap: of 3 questions of the evaluation set 'a' 1 are among those trained on, and 0 more share 13 words with "
    "one (the first: question 1, from 0)",
    "overlap: no question of the evaluation set 'b' is among the 3 trained on, nor shares 13 words with one",
  ]
