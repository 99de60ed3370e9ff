r"""An answer's text as tokens: LaTeX, plain mathematics ("2*x^2", "sqrt(2)") and prose alike, in one pass.

Dress that says nothing goes here: spacing, sizes, `$`, fonts, currency signs, thousands separators. Words stay, as
tokens of their own; what they mean for an answer is `dress`'s matter. Any text gives tokens: what has no meaning is a
token of kind OTHER, that no formula takes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CHARACTERS = 2000  # of an answer; longer ones are not read
EXPONENT = 4000  # of ten, in 1e5

# Kinds of tokens.
NUMBER, NAME, FUNCTION, COMMAND, SIGN, RELATION, OPEN, CLOSE, SEPARATOR, WORD, OTHER = range(11)


class Token(NamedTuple):
  """spaced: white space stands before it."""

  kind: int
  text: str
  spaced: bool


_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_FRACTIONS = {
  "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
  "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
_GREEK = {
  "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
  "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau",
  "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
  "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_NAMES = {*_GREEK.values(), "iota", "upsilon", "varepsilon", "vartheta", "varphi", "varrho", "ell", "hbar"}
_CHARACTERS = str.maketrans(
  {c: f"\\{name} " for c, name in _GREEK.items()}
  | {c: "\\frac{%s}{%s}" % tuple(f.split("/")) for c, f in _FRACTIONS.items()}  # noqa: UP031 - braces
  | dict.fromkeys("−–﹣－", "-")
  | dict.fromkeys("×·⋅∙", "*")
  | dict.fromkeys("÷∕⁄", "/")
  | dict.fromkeys('$€£¥₹"“”', " ")
  | dict.fromkeys("’′", "'")
  | {
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∈": "\\in ", "∞": "\\infty ", "√": "\\sqrt ",
    "°": "\\degree ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "±": "\\pm ", "∓": "\\mp ", "⟨": "\\langle ",
    "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∠": "\\angle ",
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}",
    "％": "%", "，": ",", "（": "(", "）": ")", "：": ":", "…": "\\ldots ", "∖": "\\setminus ",
  }
)  # fmt: skip

# In this order: (what, by what). Each is linear in the length of the text.
_REWRITTEN = (
  (re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+"), lambda m: "^{" + "".join(_SUPERSCRIPTS[c] for c in m.group()) + "}"),
  (re.compile(r"(?<!\\)\\[$()\[\]]"), " "),  # currency, and the borders of formulas
  (re.compile(r"(?<=[0-9])(?:\\[,!;: ]|\{,\}|,\\!\s*|~)(?=[0-9]{3}(?![0-9]))"), ""),  # 1\,000 and 1{,}000
  (re.compile(r"(?<![0-9.,}])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/])"), lambda m: m.group().replace(" ", "")),
  (re.compile(r"(?<=[\w)}])(?:\*\*| \*\* )(?=[\w({\\-])"), "^"),  # Python's power; the other ** are emphasis
  (re.compile(r"\*\*"), " "),
  (re.compile(r"^\s*\]([^\[\]]*[\[\]]\s*)$"), r"(\1"),  # ]0, 1] and [0, 1[
  (re.compile(r"^(\s*[\[(][^\[\]]*)\[\s*$"), r"\1)"),
  (re.compile(r"(?<![a-zA-Z])([aApP])\.\s?[mM]\.?(?![a-zA-Z])"), r"\1m"),
  (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
  (re.compile(r"\\(?:left|right)\s*\."), " "),
  (re.compile(r"\^\s*(?:\\(?:circ|degree)(?![a-zA-Z])|\{\s*\\(?:circ|degree)\s*\})"), r"\\degree "),
  (re.compile(r"\^\s*\{?\s*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?(?:th|st|nd|rd)\s*\}(?:\s*\})?"), " "),  # 5^{th}
  (re.compile(r"\\(frac|dfrac|tfrac|binom)\s*([0-9])\s*([0-9])"), r"\\\1{\2}{\3}"),
)

_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")

_FUNCTIONS = {
  *("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"),
  *("log", "ln", "lg", "exp", "gcd", "lcm"),
}
_COMMANDS = {
  **dict.fromkeys(("cdot", "times", "ast"), (SIGN, "*")),
  **dict.fromkeys(("div", "slash"), (SIGN, "/")),
  **dict.fromkeys(("le", "leq", "leqslant"), (RELATION, "<=")),
  **dict.fromkeys(("ge", "geq", "geqslant"), (RELATION, ">=")),
  **dict.fromkeys(("ne", "neq"), (RELATION, "!=")),
  **dict.fromkeys(("approx", "simeq", "doteq"), (RELATION, "~")),
  **dict.fromkeys(("frac", "dfrac", "tfrac", "cfrac"), (COMMAND, "frac")),
  **dict.fromkeys(("binom", "dbinom", "tbinom"), (COMMAND, "binom")),
  **dict.fromkeys(("vert", "lvert", "rvert"), (SIGN, "|")),
  **dict.fromkeys(("emptyset", "varnothing"), (COMMAND, "emptyset")),
  **dict.fromkeys(("circ", "degree", "degrees", "deg"), (SIGN, "°")),
  **dict.fromkeys(("setminus", "backslash"), (SIGN, "setminus")),
  **dict.fromkeys(("bmod", "mod"), (SIGN, "mod")),
  **{name: (OPEN, f"\\{name}") for name in ("lfloor", "lceil", "langle")},
  **{name: (CLOSE, f"\\{name}") for name in ("rfloor", "rceil", "rangle")},
  **{name: (SIGN, name) for name in ("pm", "mp", "cup")},
  **{name: (NAME, name) for name in _NAMES},
  **{name: (FUNCTION, name) for name in (*_FUNCTIONS, "max", "min")},
  "lt": (RELATION, "<"), "gt": (RELATION, ">"), "in": (RELATION, "in"), "infty": (COMMAND, "infty"),
  "sqrt": (COMMAND, "sqrt"), "choose": (COMMAND, "choose"), "lbrace": (OPEN, "\\{"), "rbrace": (CLOSE, "\\}"),
  "imath": (NAME, "i"), "prime": (SIGN, "'"), "angle": (WORD, "angle"), "triangle": (WORD, "triangle"),
}  # fmt: skip
_SKIPPED = {
  *("left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr"),
  *("displaystyle", "textstyle", "limits", "quad", "qquad", "rm", "bf", "it", "boxed", "fbox", "enspace"),
  *("mathbf", "mathit", "mathsf", "mathtt", "mathcal", "boldsymbol", "bm", "underline", "displaylimits"),
}
# What stands in their braces is prose, names of functions or units.
_PROSE = {
  *("text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "emph", "mbox", "hbox", "mathrm"),
  *("operatorname",),
}
_ACCENTS = {"overline", "bar", "vec", "hat", "widehat", "tilde", "overrightarrow", "mathbb", "dot"}

_UNITS = set(
  "cm mm km kg mg ml ft mi yd lb oz hr th st nd rd cc min sec hrs mph kph rpm rad lbs yds usd mol".split()
)
UNIT_LETTERS = set("mgshLlNJWVKCF")
_SHORT_WORDS = set("is of in to at on by no if an as it we he be am pm do so up us me my go".split())
_CAPITALS = set("USD EUR GBP RMB CNY INR KG CM KM MM ML AM PM MPH NO YES TRUE FALSE NONE AND OR NOT".split())
_MEANT = {
  **dict.fromkeys(("percent", "percentage", "pct"), (SIGN, "%")),
  **dict.fromkeys(("degree", "degrees", "deg"), (SIGN, "°")),
  **dict.fromkeys(("and", "or"), None),
  **dict.fromkeys(("infinity", "inf"), (COMMAND, "infty")),
  "mod": (SIGN, "mod"), "sqrt": (COMMAND, "sqrt"),
}
_CALLED = {name: name for name in ("abs", "floor", "ceil", "min", "max")} | {
  name: f"arc{name[1:]}" for name in ("asin", "acos", "atan")
}  # functions where a parenthesis follows  # fmt: skip

_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?")
_BASED = re.compile(r"([0-9]|[0-9A-Z]{2,40})_\s*(?:\{\s*([0-9]{1,2})\s*\}|([0-9]{1,2}))(?![0-9])")
_REPEATING = re.compile(
  r"([0-9]*\.[0-9]*)(?:\\(?:overline|bar)\s*\{([0-9]+)\}|\\dot\s*\{?([0-9])\}?(?:([0-9]*)\\dot\s*\{?([0-9])\}?)?)"
)
_BEGIN = re.compile(r"\\begin\s*\{([a-zA-Z]*)\*?\}\s*(?:\{[lcr| ]*\})?")
_END = re.compile(r"\\end\s*\{([a-zA-Z]*)\*?\}")
_LETTERS = re.compile(r"[a-zA-Z]+")
_PROSE_WORD = re.compile(r"[a-zA-Z]+(?:['-][a-zA-Z]+)*")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_ACCENTED = re.compile(r"\s*(?:\{([^{}\\]{1,20})\}|([a-zA-Z]))")
_SPACE = re.compile(r"(?:\s|~|\\[ ,;:!>/])+")
_FUNCTION_OF = re.compile(r"(arcsin|arccos|arctan|sin|cos|tan|ln|log)([a-z]|pi|theta)")
_SIGNS = {
  **{c: (SIGN, c) for c in "+-*/^_!%:'|&"},
  **{c: (RELATION, c) for c in "=<>"},
  **{c: (OPEN, c) for c in "([{"},
  **{c: (CLOSE, c) for c in ")]}"},
  **{c: (SEPARATOR, c) for c in ",;"},
}  # fmt: skip
_TWO = {
  "<=": (RELATION, "<="), ">=": (RELATION, ">="), "!=": (RELATION, "!="), "==": (RELATION, "="),
  "\\\\": (SIGN, "row"), "\\{": (OPEN, "\\{"), "\\}": (CLOSE, "\\}"), "\\%": (SIGN, "%"), "\\|": (SIGN, "|"),
}  # fmt: skip


def clean(text: str) -> str:
  """The text in ASCII where it has a meaning there, without dollars, thousands separators and emphasis."""
  text = text.translate(_CHARACTERS)
  if "\\begin" not in text:  # elsewhere a double backslash is one that was escaped
    text = _DOUBLED.sub(r"\\", text)
  for pattern, rewritten in _REWRITTEN:
    text = pattern.sub(rewritten, text)
  return text


class Tokenizer:
  """tokens(text): one pass over a cleaned text."""

  def __init__(self, text: str):
    self.text, self.at, self.found = text, 0, []
    self.spaced = False
    self.depth = 0  # of brackets other than LaTeX's own: in them a comma separates, "(1,234)" is a pair
    self.braces: list[bool] = []  # whether the brace opened prose, and goes
    self.prose = False  # the next brace opens prose

  def tokens(self) -> list[Token]:
    while self.at < len(self.text):
      space = _SPACE.match(self.text, self.at)
      if space:
        self.at, self.spaced = space.end(), True
        continue
      if not (self._number() or self._letters() or self._command() or self._sign()):
        self._add(OTHER, self.text[self.at], self.at + 1)
    return self.found

  def _add(self, kind: int, text: str, end: int) -> bool:
    self.found.append(Token(kind, text, self.spaced))
    self.at, self.spaced = end, False
    return True

  def _number(self) -> bool:
    based = _BASED.match(self.text, self.at)
    if based and not self._in_prose():
      digits, base = based.group(1), int(based.group(2) or based.group(3))
      if 2 <= base <= 36 and (len(digits) > 1 or digits.isdigit()) and _is_number(digits, base):
        return self._add(NUMBER, f"{digits}_{base}", based.end())
    repeating = _REPEATING.match(self.text, self.at)
    if repeating:
      start, bar, first, middle, last = repeating.groups(default="")
      return self._add(NUMBER, f"{start}({bar or first + middle + last})", repeating.end())
    match = (not self.depth and _GROUPED.match(self.text, self.at)) or _NUMBER.match(self.text, self.at)
    return bool(match) and self._add(NUMBER, match.group().replace(",", ""), match.end())

  def _in_prose(self) -> bool:
    return bool(self.braces) and self.braces[-1]

  def _letters(self) -> bool:
    prose = self._in_prose()
    match = (_PROSE_WORD if prose else _LETTERS).match(self.text, self.at)
    if not match:
      return False
    run, end = match.group(), match.end()
    before = self.found[-1] if self.found else None
    if prose and len(run) == 1:  # \text{A} is A, the m of "5\text{ m}" and the a of "\text{a day}" are words
      unit = run in UNIT_LETTERS and before is not None and (before.kind in (NUMBER, CLOSE) or before.text == "°")
      alone = self.text[self.at - 1] in "{(" and self.text[end : end + 1] in ("}", ")")
      return self._add(WORD if unit or not (alone or run.isupper()) else NAME, run, end)
    attached = not self.spaced and before is not None and before.kind in (NUMBER, NAME, CLOSE)
    following = self.text[end : end + 1]
    kind, text = self._meaning(run, prose, attached, before, following)
    if kind is None:  # a product of letters
      for place, letter in enumerate(run, self.at + 1):
        self._add(NAME, letter, place)
      return True
    if kind == FUNCTION and not text:  # sinx
      function, of = _FUNCTION_OF.fullmatch(run).groups()
      self._add(FUNCTION, function, end)
      self.spaced = True
      return self._add(NAME, of, end)
    return self._add(kind, text, end)

  def _meaning(self, run, prose, attached, before, following) -> tuple[int | None, str]:
    """(kind, text) of a run of letters; kind None for a product of single letters."""
    lower = run.lower()
    if len(run) > 1 and lower in _MEANT:
      return _MEANT[lower] or (SEPARATOR, lower)
    if lower in _CALLED and following in ("(", "{"):
      return FUNCTION, _CALLED[lower]
    if run in _FUNCTIONS:
      return FUNCTION, run
    if prose:
      return WORD, run
    if len(run) == 1 or run in _NAMES:
      return NAME, run
    if _FUNCTION_OF.fullmatch(run):
      return FUNCTION, ""
    if len(run) >= 5 or run.upper() in _CAPITALS or lower in _UNITS:
      return WORD, run
    if run.isupper():
      return NAME, run  # a segment, an angle, an abbreviation
    if not run.islower():
      return (WORD, run) if len(run) > 2 or run == "Rs" else (None, run)
    if len(run) == 4:
      return WORD, run
    if attached or following in ("^", "_"):
      return None, run
    if len(run) == 2:
      return (WORD if run in _SHORT_WORDS else None), run
    # Three letters: a word after a value and at the start of prose, else a product ("abc + 1").
    value_before = before is not None and before.kind in (NUMBER, NAME, CLOSE, WORD)
    return (WORD if value_before or not re.match(r"\s*[-+*/=^<>]", self.text[self.at + 3 :]) else None), run

  def _command(self) -> bool:
    match = _COMMAND.match(self.text, self.at)
    if not match:
      return False
    name, end = match.group(1), match.end()
    if name in _COMMANDS:
      kind, text = _COMMANDS[name]
      self.depth += {OPEN: 1, CLOSE: -1}.get(kind, 0)
      return self._add(kind, text, end)
    if name in _PROSE:
      self.at, self.prose = end, True
      return True
    if name in _SKIPPED:
      self.at, self.spaced = end, True
      return True
    if name in _ACCENTS:
      return self._accent(name, end)
    for pattern, kind in ((_BEGIN, OPEN), (_END, CLOSE)):
      environment = pattern.match(self.text, self.at)
      if environment:
        self.depth += 1 if kind == OPEN else -1
        return self._add(kind, f"{environment.group(1)}", environment.end())
    return self._add(OTHER, match.group(), end)

  def _accent(self, name: str, end: int) -> bool:
    r"""\vec{v}, \overline{AB}: a name of its own."""
    inner = _ACCENTED.match(self.text, end)
    if not inner:
      return self._add(OTHER, name, end)
    what = "".join((inner.group(1) or inner.group(2)).split())
    return self._add(NAME, f"{name}({what})", inner.end())

  def _sign(self) -> bool:
    two = self.text[self.at : self.at + 2]
    kind, text = _TWO.get(two) or _SIGNS.get(self.text[self.at], (None, ""))
    if kind is None:
      return False
    end = self.at + (2 if two in _TWO else 1)
    if text == "{":
      self.braces.append(self.prose)
      if self.prose:
        self.at, self.prose, self.spaced = end, False, True
        return True
    elif text == "}":
      if self.braces and self.braces.pop():
        self.at, self.spaced = end, True
        return True
    elif kind in (OPEN, CLOSE):
      self.depth += 1 if kind == OPEN else -1
    return self._add(kind, text, end)


def _is_number(digits: str, base: int) -> bool:
  try:
    int(digits, base)
  except ValueError:
    return False
  return True
