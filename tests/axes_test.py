"""fipo_jax/sweeps/axes.py: arms from axes and from get_hyper, and the names of their folders."""

import numpy as np
import pytest

from fipo_jax.sweeps import axes

HYPER = axes.Hyper()
FIELDS = {
  "seed", "steps", "data.seed", "data.name", "data.path", "eval.path", "algorithm.name", "algorithm.half_life_tokens",
  "algorithm.clip_high", "algorithm.weight_clip",
}  # fmt: skip


# Flags


def test_axes_multiply_the_last_one_fastest_and_zip_pairs_them():
  a, b = axes.parse_axis("a.x=1|2"), axes.parse_axis("config.b=(3, 4)|")
  assert b == [{"b": "(3, 4)"}, {"b": ""}]  # a tuple keeps its comma, "config." may be there, an empty text is one
  assert axes.combine([a, b], zipped=False) == [
    {"a.x": "1", "b": "(3, 4)"}, {"a.x": "1", "b": ""}, {"a.x": "2", "b": "(3, 4)"}, {"a.x": "2", "b": ""},
  ]  # fmt: skip
  assert axes.combine([a, b], zipped=True) == [{"a.x": "1", "b": "(3, 4)"}, {"a.x": "2", "b": ""}]
  assert axes.parse_axis("a=b=c|d") == [{"a": "b=c"}, {"a": "d"}]


@pytest.mark.parametrize(
  "says, texts, zipped",
  [
    ("--axis=steps: expected", ["steps"], False),
    ("--axis==3: expected", ["=3"], False),
    ("--axis=a-b=3: expected", ["a-b=3"], False),
    ("--axis: a is given twice", ["a=1|2", "config.a=3"], False),
    ("--zip: lists of 2, 3 values: expected equal", ["a=1|2", "b=1|2|3"], True),
    ("--zip: lists of 1, 2 values: expected equal", ["a=1", "b=1|2"], True),
  ],
)
def test_mistakes_in_axes(says, texts, zipped):
  with pytest.raises(ValueError) as e:
    axes.combine([axes.parse_axis(text) for text in texts], zipped=zipped)
  assert says in str(e.value)


def test_seeds_are_how_many_or_which():
  assert axes.parse_seeds("5") == (0, 1, 2, 3, 4)
  assert axes.parse_seeds("1") == (0,)
  assert axes.parse_seeds("3|5|7") == (3, 5, 7)


@pytest.mark.parametrize("text", ["0", "", "-1", "1,2", "3|", "3|3", "3|x", "1.0", "²"])
def test_mistakes_in_seeds(text):
  with pytest.raises(ValueError, match="--seeds=.*: expected"):
    axes.parse_seeds(text)


# get_hyper


def test_hyper_makes_lists_of_arms():
  x, y = HYPER.sweep("config.x", [1, 2]), HYPER.sweep("y", HYPER.discrete(range(2)))
  assert x == [{"x": 1}, {"x": 2}] and y == [{"y": 0}, {"y": 1}]
  assert HYPER.product([x, y]) == [{"x": 1, "y": 0}, {"x": 1, "y": 1}, {"x": 2, "y": 0}, {"x": 2, "y": 1}]
  assert HYPER.zipit([x, y]) == [{"x": 1, "y": 0}, {"x": 2, "y": 1}]
  assert HYPER.chainit([y, x]) == [{"y": 0}, {"y": 1}, {"x": 1}, {"x": 2}]
  assert HYPER.product([]) == [{}]  # the config as it is
  assert HYPER.product(iter(part) for part in (x, y)) == HYPER.product([x, y])


def test_a_fixed_value_is_in_every_arm_of_a_product_or_zip():
  x, fixed = HYPER.sweep("x", [1, 2]), HYPER.fixed("config.y", "a")
  both = [{"x": 1, "y": "a"}, {"x": 2, "y": "a"}]
  assert HYPER.product([x, fixed]) == HYPER.zipit([fixed, x]) == both
  assert HYPER.zipit([HYPER.fixed("y", "a", length=2), x], length=2) == both
  assert HYPER.product([HYPER.fixed("y", "a", length=1), x]) == both
  assert HYPER.zipit([fixed, HYPER.fixed("z", 0)]) == [{"y": "a", "z": 0}]


def test_values_are_pythons_own():
  """A NumPy number as it prints itself is no text that a flag reads."""
  (arm, _), flags = HYPER.sweep("x", np.linspace(0.5, 1, 2)), HYPER.sweep("y", HYPER.boolean())
  assert type(arm["x"]) is float and arm == {"x": 0.5}
  assert flags == [{"y": False}, {"y": True}]


@pytest.mark.parametrize(
  "says, make",
  [
    ("hyper.uniform: arms must be countable; there are sweep, fixed, product,", lambda h: h.uniform("x", 1)),
    ("hyper.interval: arms must", lambda h: h.interval(0, 1)),
    ("hyper.zipit: lists of 2, 3 values", lambda h: h.zipit([h.sweep("x", [1, 2]), h.sweep("y", [1, 2, 3])])),
    ("hyper.zipit: lists of 1, 2 values", lambda h: h.zipit([h.sweep("x", [1]), h.sweep("y", [1, 2])])),
    ("hyper.zipit: lists of 2 values, length=5", lambda h: h.zipit([h.sweep("x", [1, 2])], length=5)),
    ("hyper.product: x is given twice", lambda h: h.product([h.sweep("x", [1]), h.fixed("config.x", 2)])),
    ("hyper.sweep('x'): length=3, but there are 2", lambda h: h.sweep("x", [1, 2], length=3)),
    ("hyper.product: expected arms", lambda h: h.product(h.sweep("x", [1, 2]))),  # a list of lists forgotten
    ("hyper.chainit: expected arms", lambda h: h.chainit([[1, 2]])),
  ],
)
def test_mistakes_in_get_hyper(says, make):
  with pytest.raises((AttributeError, TypeError, ValueError)) as e:
    make(HYPER)
  assert says in str(e.value)


# Names


def named(*arms):
  return axes.folder_names([{field: value for field, value in arm} for arm in arms], FIELDS)


def test_names_are_the_shortest_end_of_the_field_and_the_value():
  tau, high = "algorithm.half_life_tokens", "algorithm.clip_high"
  assert named([(tau, 8.0), (high, 0.28)]) == ["half_life_tokens=8,clip_high=0.28"]
  assert named([(high, 1e-6)]) == ["clip_high=1e-06"]
  assert named([("algorithm.name", "dapo")], [("data.seed", -1)]) == ["algorithm.name=dapo", "data.seed=-1"]
  assert named([("steps", 3), ("algorithm.weight_clip", (0.8, 1.2))], []) == ["steps=3,weight_clip=0.8_1.2", "default"]
  assert named([("algorithm.weight_clip", ())], [("eval.path", "")]) == ["weight_clip=empty", "eval.path=empty"]
  assert axes.sweep_name("quickstart", [tau, "data.name"], FIELDS) == "quickstart-half_life_tokens-data.name"


AWKWARD = ["a/b", "a b", "a:b", "a_b", "A_B", "/a/b/", "..", "a\nb", "é", "x" * 300, "x" * 301, "%", "$A", "'", " "]


def test_no_two_arms_share_a_folder_and_every_name_can_be_one():
  """Not even where upper and lower case are one, as on macOS; nor do tuples run into texts."""
  values = [*AWKWARD, ("a", "b_c"), ("a_b", "c"), "a_b_c", (), "", "empty", True, "True", 1, 1.5]
  names = named(*([("eval.path", value)] for value in values))
  assert len({name.casefold() for name in names}) == len(values)
  for name in names:
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-=,"), name
    assert name.startswith("eval.path=") and len(name) <= axes.NAME_CHARACTERS + 7
  (long,) = named([(field, "y" * 30) for field in sorted(FIELDS)])
  assert len(long) == axes.NAME_CHARACTERS + 7
  assert len(set(named([("data.path", "a b")], [("data.path", named([("data.path", "a b")])[0].split("=")[1])]))) == 2


def test_a_name_does_not_depend_on_the_arms_beside_it():
  """Else a value more would give finished runs new folders."""
  values = [value for value in AWKWARD if value != "A_B"]  # but for its case a_b
  together = named(*([("eval.path", value)] for value in values))
  for value, name in zip(values, together, strict=True):
    assert named([("eval.path", value)]) == [name]
