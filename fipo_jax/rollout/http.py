"""The sampler that asks servers: vLLM and SGLang over HTTP, token ids and log-probabilities in and out.

Weights go through a directory that the trainer writes and every server reads, so it must be on a file system that all
of them see under one name. What a server must be started with, and what its log-probabilities are: see `dialects`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import queue
import shutil
import sys
import time
import urllib.parse
import weakref
from collections.abc import Callable, Sequence

import jax
import numpy as np

from fipo_jax import stalls
from fipo_jax.models import hf
from fipo_jax.models.transformer import Model
from fipo_jax.rollout.dialects import DIALECTS
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.rollout.servers import Servers
from fipo_jax.rollout.stops import StopSearch
from fipo_jax.rollout.usage import Usage
from fipo_jax.rollout.wire import LOST, EngineError, TryAgain, Wire, arrived, start
from fipo_jax.types import Prompt, Rollout, unbegun

LOOK_S = 1.0  # without a response, after which `watch` is asked whether to go on
KEPT_EXPORTS = 2  # the weights served now, and those before: a server may still be reading them


class HttpEngine:
  """Samples from servers that hold their own copy of the weights.

  One request per sample, at most `concurrency` of them at a time; all samples of a prompt go to the same server, whose
  prefix cache then holds the prompt, and prompts go round the servers. A request that fails is tried again at the next
  server; one that is not wanted any more has its connection closed, upon which both kinds of server give it up.

  Weights are those of the last `update`; a policy that a server has already is not pushed again. Each push has a name,
  the directory's, that the server keeps with the weights and is asked for: one that has been started anew gets them
  again before it samples. Of a server that keeps no name only a connection that broke shows it.
  """

  def __init__(
    self,
    model: Model,
    mesh,
    *,
    urls: tuple[str, ...],
    dialect: str,
    timeout_s: float,
    retry_s: float,
    concurrency: int,
    export_dir: str,
    template_dir: str | None,
    max_prompt_tokens: int,
    max_response_tokens: int,
    api_key: str = "",
    model_name: str = "",
    text: Callable[[Sequence[int]], str] | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
  ):
    """See the class.

    Args:
      mesh: not needed here; every engine is made the same way.
      urls: roots of the servers, as http://host:8000. dialect: a row of DIALECTS.
      timeout_s: seconds to wait for an answer, of a whole response or of loading weights. retry_s: seconds for which
        a request that met a dead connection, this limit, or an answer 429 or 5xx is tried again.
      concurrency: requests under way at a time, over all servers.
      export_dir: where weights are written, a directory of its own; the newest two stay. template_dir: a Hugging Face
        directory of this model, whose other files and dtype the weights get.
      max_prompt_tokens, max_response_tokens: longest prompt taken; limit that `Sampling.max_tokens` must respect.
      api_key: bearer token, "" for none. model_name: as served; "" leaves it to the server. vLLM only.
      text: token ids -> text, special tokens included, for `Sampling.stop_strings`.
      say: takes a line about what servers do not do.
    Raises:
      ValueError: a setting is wrong, or there is more than one process: each would sample for itself.
    """
    urls = tuple(urls)
    if not urls:
      raise ValueError("rollout.urls is empty; give the servers, as http://host:8000.")
    for url in urls:
      _check_url(url)
    if dialect not in DIALECTS:
      raise ValueError(f"rollout.dialect={dialect!r} is unknown; choose from {sorted(DIALECTS)}.")
    if not (math.isfinite(timeout_s) and timeout_s > 0):
      raise ValueError(f"rollout.timeout_s={timeout_s} must be a positive number of seconds.")
    if not (math.isfinite(retry_s) and retry_s >= 0):
      raise ValueError(f"rollout.retry_s={retry_s} must be 0 (no second try) or a positive number of seconds.")
    sizes = {
      "concurrency": concurrency,
      "max_prompt_tokens": max_prompt_tokens,
      "max_response_tokens": max_response_tokens,
    }
    for name, value in sizes.items():
      if value < 1:
        raise ValueError(f"rollout.{name}={value} must be at least 1.")
    if not export_dir:
      raise ValueError("rollout.export_dir is empty; give a directory that the servers see under the same name.")
    if jax.process_count() > 1:
      raise ValueError(f"rollout.engine='http' runs in one process, not {jax.process_count()}; use 'native'.")
    self.model, self.mesh, self.urls = model, mesh, tuple(url.rstrip("/") for url in urls)
    self.dialect, self.model_name = DIALECTS[dialect], model_name
    self.timeout_s, self.retry_s, self.concurrency = timeout_s, retry_s, concurrency
    self.export_dir, self.template_dir = pathlib.Path(os.path.abspath(export_dir)), template_dir
    self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
    self.headers = {"Content-Type": "application/json", "Connection": "close"}
    if api_key:
      self.headers["Authorization"] = f"Bearer {api_key}"
    self.text, self.say = text, say
    self.version = 0  # of the weights last written, counted on over restarts: a server never sees a path twice
    self.usage = Usage()
    self.servers = Servers(self.urls, self.dialect, max_prompt_tokens + max_response_tokens, say)
    self._loaded = False  # whether there was an update since `release`
    self._written: list[weakref.ref] = []  # the parameters in the newest export

  def update(self, params) -> None:
    """Writes the policy's parameters to export_dir/<version> and has every server load them.

    The very arrays of the last update are not written again, and loaded only by servers that do not have them.

    Raises:
      EngineError: a server did not, or its context is too short. None is asked for samples until an update succeeds.
    """
    self._loaded = False
    wire = Wire(self.timeout_s, self.retry_s, self.headers, self.say)
    try:
      self.servers.meet(wire)
      new = not self._is_written(params)
      if new:
        self._write(params)
      self.servers.push(wire, str(self._directory()), new=new)
    finally:
      wire.cut()
    self._loaded = True

  def release(self) -> None:
    """Nothing to let go of: the servers keep their weights. See Engine."""
    self._loaded = False

  def generate(
    self,
    prompts: list[Prompt],
    samples_per_prompt: int,
    *,
    key,
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[list[list[Rollout]]], bool] | None = None,
    pending: Sequence[list[Rollout]] = (),
  ) -> list[list[Rollout]]:
    """Samples responses; groups come back pending ones first, then in prompt order, samples in order within.

    Args:
      key: random key of the whole call; the seed of a request comes from (key, prompt.id, sample), and from the number
        of tokens that a continued response begins with.
      progress: called with (samples done, samples to do in this call) as they finish.
      watch: called with the groups that became complete, in this thread, and every LOOK_S with none; when it returns
        True the requests under way are given up and their samples come back as they were, stop_reason "unfinished".
      pending: groups of an earlier call; their unfinished samples are continued, the others stay.
    Raises:
      EngineError: the servers failed; it carries the groups.
      ValueError: a prompt is empty, too long, or has ids outside the vocabulary; max_tokens is above the limit; or
        there was no `update` since the start or the last `release`.
    """
    self._check([*prompts, *(group[0].prompt for group in pending)], samples_per_prompt, sampling)
    groups = [[_at_limit(r, sampling) for r in group] for group in pending]
    groups += [[unbegun(prompt, number) for number in range(samples_per_prompt)] for prompt in prompts]
    todo = [(g, i) for g, group in enumerate(groups) for i, r in enumerate(group) if r.stop_reason == "unfinished"]
    left = collections.Counter(g for g, _ in todo)  # samples to finish, by group
    seeds = dict(zip(todo, _seeds(key, [groups[g][i] for g, i in todo]), strict=True))
    wire = Wire(self.timeout_s, self.retry_s, self.headers, self.say)
    began = time.perf_counter()
    self.usage = Usage()
    before = {at: len(groups[at[0]][at[1]].tokens) for at in todo}

    def work(at):
      g, i = at
      return self._sample(wire, groups[g][i], seeds[at], g, sampling)

    def place(arrived) -> tuple[list[list[Rollout]], BaseException | None]:
      """Puts finished samples into their groups: (groups now complete, first error)."""
      complete, error = [], None
      for (g, i), outcome in arrived:
        if isinstance(outcome, BaseException):
          error = error or outcome
          continue
        groups[g][i] = outcome
        left[g] -= 1
        if not left[g]:
          complete.append(groups[g])
      return complete, error

    try:
      outcomes = start(todo, self.concurrency, work)
      while left.total():
        try:
          came = [outcomes.get(timeout=LOOK_S)]
        except queue.Empty:
          came = []
        stalls.alive()  # requests have deadlines of their own
        complete, error = place([*came, *arrived(outcomes)])
        if isinstance(error, EngineError):
          raise EngineError(str(error), groups) from error
        if error is not None:
          raise error
        if progress and came:
          progress(len(todo) - left.total(), len(todo))
        if watch and watch(complete):
          break
      place(arrived(outcomes))
    finally:
      wire.cut()
      self.usage.seconds = self.usage.decode_seconds = self.usage.last_sample_s = time.perf_counter() - began
      done = [(at, groups[at[0]][at[1]]) for at in todo]
      self.usage.lengths = [len(r.tokens) for _, r in done if r.finished]
      self.usage.tokens = sum(len(r.tokens) - before[at] for at, r in done)
    return groups

  def _sample(self, wire: Wire, begun: Rollout, seed: int, home: int, sampling: Sampling) -> Rollout:
    """Has one response finished by a server, `home` counted round them the first choice."""
    first = home % len(self.urls)
    urls, r = self.urls[first:] + self.urls[:first], begun
    while not r.finished:  # once, but where a server finds a stop string before min_tokens
      r = self._more(wire, urls, r, (seed + len(r.tokens) - len(begun.tokens)) & 0x7FFFFFFF, sampling)
    return r

  def _more(self, wire: Wire, urls: tuple[str, ...], r: Rollout, seed: int, sampling: Sampling) -> Rollout:
    """The response with what one request adds."""
    have = len(r.tokens)
    rest = dataclasses.replace(
      sampling, max_tokens=sampling.max_tokens - have, min_tokens=max(0, sampling.min_tokens - have)
    )
    body = self.dialect.request([*r.prompt.tokens.tolist(), *r.tokens.tolist()], rest, seed, self.model_name)

    def work(url):
      self.servers.ready(wire, url)
      try:
        return self._read(url, wire.post(url, self.dialect.path, body, advice=self.servers.advice), rest)
      except EngineError:
        raise
      except LOST as error:
        if not isinstance(error, TimeoutError):  # it may be started anew before it is asked again
          self.servers.doubt(url)
        raise

    tokens, logp, reason = wire.somewhere(urls, work, self.dialect.path)
    if sampling.stop_strings:
      tokens, logp, reason = self._by_strings(r, tokens, logp, reason, sampling)
    return dataclasses.replace(
      r,
      tokens=np.concatenate([r.tokens, np.array(tokens, np.int32)]),
      logp=np.concatenate([r.logp, np.array(logp, np.float32)]),
      stop_reason=reason,
    )

  def _by_strings(self, r: Rollout, tokens, logp, reason, sampling: Sampling):
    """(tokens, logp, stop_reason) where stop strings end a response, as the native engine has it.

    A server does not see one that began in what it was given as a prompt; SGLang minds no min_tokens, and calls it
    "length" where the last token allowed completes one.
    """
    keep = StopSearch(self.text, sampling.stop_strings, sampling.min_tokens, r.tokens).feed(tokens)
    if keep is not None:
      return tokens[:keep], logp[:keep], "stop"
    count = len(r.tokens) + len(tokens)
    if reason == "stop" and tokens[-1] not in sampling.stop_ids and count <= sampling.min_tokens:
      reason = "unfinished" if count < sampling.max_tokens else "length"
    return tokens, logp, reason

  def _read(self, url: str, said, sampling: Sampling) -> tuple[list[int], list[float], str]:
    """(tokens, logp, stop_reason) of an answer, or what is wrong with it."""
    answer = self.dialect.answer(said)
    tokens, logp = answer.tokens, answer.logp
    if answer.reason == "abort":  # it was paused, or ran out of memory
      raise TryAgain("gave the request up")
    for name, what in (("token ids", tokens), ("log-probabilities", logp)):
      if not isinstance(what, list):
        raise EngineError(f"{url} answered without {name}: {self.dialect.needs}.")
    if len(tokens) != len(logp):
      raise EngineError(f"{url} answered {len(tokens)} token ids but {len(logp)} log-probabilities.")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in logp):
      raise EngineError(f"{url} answered log-probabilities that are no finite numbers; are its weights sound?")
    if not 1 <= len(tokens) <= sampling.max_tokens:
      raise EngineError(f"{url} answered {len(tokens)} tokens where 1 to {sampling.max_tokens} were asked for.")
    vocab = self.model.config.vocab_size
    if not all(isinstance(t, int) and 0 <= t < vocab for t in tokens):
      raise EngineError(f"{url} answered a token id outside 0..{vocab - 1}; does it serve this model?")
    if tokens[-1] in sampling.stop_ids or answer.reason == "stop" and answer.matched in sampling.stop_strings:
      return tokens, logp, "stop"  # said or not: SGLang calls it "length" where the end token is the last one allowed
    if answer.reason == "stop":
      raise EngineError(
        f"{url} ended a response at token {tokens[-1]} ({answer.matched!r}), which is not among the stop ids "
        f"{list(sampling.stop_ids)}; if it is the model's end token, add it to them."
      )
    if answer.reason != "length":
      raise EngineError(f"{url} ended a response for the reason {answer.reason!r}; expected 'stop' or 'length'.")
    if len(tokens) < sampling.max_tokens:
      raise EngineError(
        f"{url} cut a response at {len(tokens)} of {sampling.max_tokens} tokens; {self.servers.room_needed()}."
      )
    return tokens, logp, "length"

  # ---- weights ----

  def _is_written(self, params) -> bool:
    """Whether the newest export holds these very arrays."""
    leaves = jax.tree.leaves(params)
    same = len(leaves) == len(self._written) and all(r() is x for r, x in zip(self._written, leaves, strict=True))
    return same and (self._directory() / "config.json").is_file()

  def _write(self, params) -> None:
    """Exports the parameters under the next version, and removes old exports."""
    self._written = []
    self.version = max([self.version, *self._exports()]) + 1
    hf.save(self._directory(), params, self.model.config, template_dir=self.template_dir)
    for version in sorted(self._exports())[:-KEPT_EXPORTS]:
      shutil.rmtree(self.export_dir / f"{version:06d}", ignore_errors=True)
    self._written = [weakref.ref(x) for x in jax.tree.leaves(params)]

  def _directory(self) -> pathlib.Path:
    return self.export_dir / f"{self.version:06d}"

  def _exports(self) -> list[int]:
    """Versions in export_dir."""
    return [int(path.parent.name) for path in self.export_dir.glob("[0-9]" * 6 + "/config.json")]

  def _check(self, prompts, samples_per_prompt, sampling):
    if not self._loaded:
      raise ValueError("the engine has no parameters; call update(params) before generate.")
    if samples_per_prompt < 1:
      raise ValueError(f"samples_per_prompt={samples_per_prompt} must be at least 1.")
    if sampling.max_tokens > self.max_response_tokens:
      raise ValueError(
        f"sampling.max_tokens={sampling.max_tokens} must be at most "
        f"rollout.max_response_tokens={self.max_response_tokens}."
      )
    if sampling.stop_strings and self.text is None:
      raise ValueError(f"sampling.stop_strings={sampling.stop_strings}: this engine was given no way to make text.")
    vocab = self.model.config.vocab_size
    for prompt in prompts:
      n = len(prompt.tokens)
      if not 1 <= n <= self.max_prompt_tokens:
        raise ValueError(
          f"prompt id={prompt.id} has {n} tokens; need 1 to rollout.max_prompt_tokens={self.max_prompt_tokens}: "
          "raise the limit or filter the prompts."
        )
      if not (0 <= np.min(prompt.tokens) and np.max(prompt.tokens) < vocab):
        raise ValueError(
          f"prompt id={prompt.id} has a token id outside 0..{vocab - 1}, the model's vocabulary; "
          "do tokenizer and model belong together?"
        )


# ---- small things ----


def _at_limit(rollout: Rollout, sampling: Sampling) -> Rollout:
  """An unfinished sample that already has all the tokens it may have is finished."""
  full = rollout.stop_reason == "unfinished" and len(rollout.tokens) >= sampling.max_tokens
  return dataclasses.replace(rollout, stop_reason="length") if full else rollout


def _seeds(key, rollouts: list[Rollout]) -> list[int]:
  """31 bits per sample: from (key, prompt.id, sample), and from the tokens it has where it has some."""
  if not rollouts:
    return []
  id_S = np.array([r.prompt.id & 0xFFFFFFFF for r in rollouts], np.uint32)
  sample_S = np.array([r.sample for r in rollouts], np.uint32)
  have_S = np.array([len(r.tokens) for r in rollouts], np.uint32)
  keys_S = jax.vmap(lambda i, g: jax.random.fold_in(jax.random.fold_in(key, i), g))(id_S, sample_S)
  begun_S = jax.vmap(jax.random.fold_in)(keys_S, have_S)
  fresh, begun = (np.asarray(jax.random.key_data(x))[:, -1] & 0x7FFFFFFF for x in (keys_S, begun_S))
  return np.where(have_S == 0, fresh, begun).tolist()


def _check_url(url: str) -> None:
  problem = "must be the root of a server, as http://host:8000"
  try:
    parts = urllib.parse.urlsplit(url)
    good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
  except ValueError:  # a port that is no number
    good = False
  if not good or parts.query or parts.fragment:
    raise ValueError(f"rollout.urls has {url!r}, which {problem}.")
  if parts.path.rstrip("/").endswith("/v1"):
    raise ValueError(f"rollout.urls has {url!r}, which {problem}; leave out /v1.")


