"""The shelf keeps each question once, in bounded memory; mixtures have ids of their own."""

import tracemalloc

import numpy as np
import pytest

from fipo_jax.data import records
from fipo_jax.data.records import Mixture, Part, Records, Shelf


def record(i, question, answer="1", **fields):
  return {"id": i, "question": question, "answer": answer, "verifier": None, "extras": {}} | fields


def shelved(*rows):
  shelf = Shelf()
  for i, (question, answer) in enumerate(rows):
    shelf.add(record(i, question, answer))
  return shelf.records()


def test_a_question_with_two_answers_is_left_out_and_counted():
  found = shelved(("a", "1"), ("b", "1"), ("a", "2"), ("b", "1"), ("c", ("1", "2")), ("a", "1"))
  assert [(r["id"], r["question"], r["answer"]) for r in found] == [(1, "b", "1"), (4, "c", ("1", "2"))]
  assert found.notes == [
    "1 questions have different answers in different rows, and are left out",
    "3 of 6 rows repeat a question; each is kept once",
  ]
  assert found.span == 6


def test_what_makes_another_question():
  shelf = Shelf()
  for fields in ({}, {"system": "s"}, {"target": "t"}, {"target": "u"}):
    shelf.add(record(0, "a", **fields))
  shelf.add({**record(0, ""), "messages": [{"role": "user", "content": "a"}]})
  assert len(shelf.records()) == 5 and len(shelved(("1", "x"), ("1", "x"), ('"1"', "x"))) == 2


def test_many_records_are_not_held_in_memory(monkeypatch):
  """Beyond a bound they wait in a file; what is kept is an index. Sorted arrays replace the dict at its bound."""
  monkeypatch.setattr(records, "MEMORY_BYTES", 10_000)
  monkeypatch.setattr(records, "RECENT", 500)
  n, size = 4000, 1000
  tracemalloc.start()
  shelf = Shelf()
  for i in range(n):
    shelf.add(record(i, f"{i % (n // 2)} " + "x" * size))
  found = shelf.records()
  held, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert len(found) == n // 2 and held < n // 2 * size / 5
  assert [found[i]["question"].split()[0] for i in (0, 7, 1999)] == ["0", "7", "1999"]
  assert found.notes == ["2000 of 4000 rows repeat a question; each is kept once"]


def test_parts_and_mixtures():
  one, two = (Records(n, lambda i, name=name: record(i, f"{name}{i}"), span=10, notes=["said"]) for name, n in
              (("a", 3), ("b", 2)))  # fmt: skip
  assert [r["question"] for r in Part(one, [2, 0])] == ["a2", "a0"]
  both = Mixture({"one": (one, 3.0), "two": (Part(two, range(1, 2)), 1.0)})
  assert [(r["id"], r["question"]) for r in both] == [(0, "a0"), (1, "a1"), (2, "a2"), (11, "b1")]
  assert both.weights == [0.75, 0.25] and both.span == 20 and both.notes == ["one: said"]
  np.testing.assert_array_equal(both.bounds, [0, 3, 4])
  with pytest.raises(IndexError):
    both[4]
