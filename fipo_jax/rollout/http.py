"""The sampler that asks servers: vLLM and SGLang over HTTP, token ids and log-probabilities in and out.

Weights go through a directory that the trainer writes and every server reads, so it must be on a file system that all
of them see under one name. What a server must be started with, and what its log-probabilities are:

vLLM, of February 2026 or later: VLLM_SERVER_DEV_MODE=1 opens /collective_rpc and /reset_prefix_cache. By default
(`--logprobs-mode raw_logprobs`) it reports log softmax(logits), whatever the temperature; log-probabilities of the
distribution sampled from (temperature, penalty, top-k, top-p, min-p) need `--logprobs-mode processed_logprobs`.

SGLang: reports log softmax(logits / temperature), after the repetition penalty but before top-k, top-p and min-p, so
with these on the log-probabilities are not those of the distribution sampled from. SGLANG_RETURN_ORIGINAL_LOGPROB must
stay unset: it leaves out the temperature. Seeds count only under `--enable-deterministic-inference`. The penalty counts
sampled tokens only, in vLLM those of the prompt too, and begins anew where a response is continued. The model's own
end token always ends a response, so it must be one of `Sampling.stop_ids`, unless there are none.

At temperature 0 both report log softmax(logits) of the chosen token, as the native engine does.

Sources, as of 2026. vLLM: vllm/entrypoints/openai/completion/protocol.py (a prompt of ids, return_token_ids, logprobs,
stop_token_ids, include_stop_str_in_output, ignore_eos, seed) and serving.py beside it (an answer's token_ids,
token_logprobs, finish_reason, stop_reason); vllm/entrypoints/serve/dev/{rpc,cache}/api_router.py;
docs.vllm.ai/en/latest/training/layerwise (reload_weights with weights_path, PR 32133), issue 32718 (without a path it
may serve stale weights); docs.vllm.ai/en/stable/configuration/engine_args (logprobs-mode).
SGLang: docs.sglang.io/docs/basic_usage/sampling_params; under python/sglang/srt, managers/io_struct.py
(UpdateWeightFromDiskReqInput), sampling/sampling_params.py (top_k -1 is off, sampling_seed, no_stop_trim),
managers/schedule_batch.py (check_finished: ignore_eos switches stop_token_ids off too, and the length is looked at
first), layers/sampler.py (log-probabilities), managers/tokenizer_manager.py (a client that hangs up ends its request);
docs.sglang.io/docs/advanced_features/deterministic_inference.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import json
import math
import os
import pathlib
import queue
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fipo_jax.models import hf
from fipo_jax.models.transformer import Model
from fipo_jax.rollout.sampling import Sampling
from fipo_jax.rollout.usage import Usage
from fipo_jax.types import Prompt, Rollout

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0  # before a request is tried again; doubles from one to the other
KEPT_EXPORTS = 2  # the weights served now, and those before: a server may still be reading them
QUOTED = 300  # characters of a server's own words in an error


class EngineError(OSError):
  """The servers failed.

  groups: all groups of the call as `generate` would have returned them: what was finished is, the rest is marked
  "unfinished". Empty when weights could not be loaded.
  """

  def __init__(self, message: str, groups: Sequence[list[Rollout]] = ()):
    super().__init__(message)
    self.groups = list(groups)


# ---- dialects ----


@dataclasses.dataclass(frozen=True)
class Answer:
  """What a server says of one request; None where it says nothing.

  logp: nats, of each token. reason: "stop", "length" or other. matched: the stop id or string that ended it.
  """

  tokens: list[int] | None
  logp: list[float | None] | None
  reason: str | None
  matched: int | str | None


@dataclasses.dataclass(frozen=True)
class Dialect:
  """How a kind of server is spoken to.

  path: where samples are asked for.
  request: (token ids so far, sampling, seed, model name) -> body of the request.
  answer: body of the answer -> Answer.
  load: directory -> (path, body) of the requests that make the server take these weights, in order.
  needs, load_needs, length_needs: what errors ask of the server: when it answers without ids or log-probabilities,
    when it does not take weights, and (an option) when it has no room for a response.
  """

  path: str
  request: Callable[[list[int], Sampling, int, str], dict[str, Any]]
  answer: Callable[[Any], Answer]
  load: Callable[[str], list[tuple[str, dict[str, Any]]]]
  needs: str
  load_needs: str
  length_needs: str


def _vllm_request(tokens: list[int], sampling: Sampling, seed: int, model_name: str) -> dict[str, Any]:
  # Everything is said: what is not comes from the model's generation_config.json.
  return ({"model": model_name} if model_name else {}) | {
    "prompt": tokens,
    "max_tokens": sampling.max_tokens,
    "min_tokens": sampling.min_tokens,
    "temperature": sampling.temperature,
    "top_k": sampling.top_k,
    "top_p": sampling.top_p,
    "min_p": sampling.min_p,
    "repetition_penalty": sampling.repetition_penalty,
    "seed": seed,
    "stop_token_ids": list(sampling.stop_ids),
    "stop": list(sampling.stop_strings),
    "ignore_eos": True,  # only the stop ids end a response
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "logprobs": 0,  # of the sampled token alone
    "return_token_ids": True,
  }


def _vllm_answer(body) -> Answer:
  choice = _dig(body, "choices", 0)
  return Answer(
    tokens=_dig(choice, "token_ids"),
    logp=_dig(choice, "logprobs", "token_logprobs"),
    reason=_dig(choice, "finish_reason"),
    matched=_dig(choice, "stop_reason"),
  )


def _vllm_load(directory: str) -> list[tuple[str, dict[str, Any]]]:
  return [
    ("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": directory}}),
    ("/reset_prefix_cache?reset_running_requests=true", {}),  # keys and values of the old weights
  ]


def _sglang_request(tokens: list[int], sampling: Sampling, seed: int, model_name: str) -> dict[str, Any]:
  del model_name  # a server has one model
  return {
    "input_ids": tokens,
    "sampling_params": {
      "max_new_tokens": sampling.max_tokens,
      "min_new_tokens": sampling.min_tokens,
      "temperature": sampling.temperature,
      "top_k": sampling.top_k or -1,
      "top_p": sampling.top_p,
      "min_p": sampling.min_p,
      "repetition_penalty": sampling.repetition_penalty,
      "sampling_seed": seed,
      "stop_token_ids": list(sampling.stop_ids),
      "stop": list(sampling.stop_strings),
      "ignore_eos": not sampling.stop_ids,  # true would switch the stop ids off as well
      "no_stop_trim": True,
      "skip_special_tokens": False,
    },
    "return_logprob": True,
  }


def _sglang_answer(body) -> Answer:
  said = _dig(body, "meta_info", "output_token_logprobs")  # [log-probability, id, text] of each token
  pairs = said if isinstance(said, list) else None
  return Answer(
    tokens=None if pairs is None else [_dig(pair, 1) for pair in pairs],
    logp=None if pairs is None else [_dig(pair, 0) for pair in pairs],
    reason=_dig(body, "meta_info", "finish_reason", "type"),
    matched=_dig(body, "meta_info", "finish_reason", "matched"),
  )


DIALECTS: dict[str, Dialect] = {
  "vllm": Dialect(
    path="/v1/completions",
    request=_vllm_request,
    answer=_vllm_answer,
    load=_vllm_load,
    needs="it must know return_token_ids and logprobs (vLLM 0.10.2 or later)",
    load_needs="it must see the directory, be of February 2026 or later, and be started with VLLM_SERVER_DEV_MODE=1",
    length_needs="--max-model-len",
  ),
  "sglang": Dialect(
    path="/generate",
    request=_sglang_request,
    answer=_sglang_answer,
    load=lambda directory: [("/update_weights_from_disk", {"model_path": directory})],
    needs="it must know return_logprob (an SGLang server asked at its own port)",
    load_needs="it must see the directory",
    length_needs="--context-length",
  ),
}


# ---- the engine ----


class HttpEngine:
  """Samples from servers that hold their own copy of the weights.

  One request per sample, at most `concurrency` of them at a time; all samples of a prompt go to the same server, whose
  prefix cache then holds the prompt, and prompts go round the servers. A request that fails is tried again at the next
  server; one that is not wanted any more has its connection closed, upon which both kinds of server give it up.

  Weights are those of the last `update`. A server that is started anew in between serves what it was started with; the
  mismatch metrics show it.
  """

  def __init__(
    self,
    model: Model,
    mesh,
    *,
    urls: tuple[str, ...],
    dialect: str,
    timeout_s: float,
    retries: int,
    concurrency: int,
    export_dir: str,
    template_dir: str | None,
    max_prompt_tokens: int,
    max_response_tokens: int,
    api_key: str = "",
    model_name: str = "",
  ):
    """See the class.

    Args:
      mesh: not needed here; every engine is made the same way.
      urls: roots of the servers, as http://host:8000. dialect: a row of DIALECTS.
      timeout_s: seconds to wait for an answer, of a whole response or of loading weights. retries: further tries of a
        request that met a dead connection, this limit, or an answer 429 or 5xx.
      concurrency: requests under way at a time, over all servers.
      export_dir: where weights are written, a directory of its own; the newest two stay. template_dir: a Hugging Face
        directory of this model, whose other files and dtype the weights get.
      max_prompt_tokens, max_response_tokens: longest prompt taken; limit that `Sampling.max_tokens` must respect.
      api_key: bearer token, "" for none. model_name: as served; "" leaves it to the server. vLLM only.
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
    if retries < 0:
      raise ValueError(f"rollout.retries={retries} must be 0 or more.")
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
    self.timeout_s, self.tries, self.concurrency = timeout_s, retries + 1, concurrency
    self.export_dir, self.template_dir = pathlib.Path(os.path.abspath(export_dir)), template_dir
    self.max_prompt_tokens, self.max_response_tokens = max_prompt_tokens, max_response_tokens
    self.headers = {"Content-Type": "application/json", "Connection": "close"}
    if api_key:
      self.headers["Authorization"] = f"Bearer {api_key}"
    self.version = 0  # of the weights last written, counted on over restarts: a server never sees a path twice
    self._loaded = False
    self.usage = Usage()

  def update(self, params) -> None:
    """Writes the policy's parameters to export_dir/<version> and has every server load them.

    Raises:
      EngineError: a server did not. None is asked for samples then, until an update succeeds.
    """
    self.release()
    self.version = max([self.version, *self._exports()]) + 1
    directory = self.export_dir / f"{self.version:06d}"
    hf.save(directory, params, self.model.config, template_dir=self.template_dir)
    for version in sorted(self._exports())[:-KEPT_EXPORTS]:
      shutil.rmtree(self.export_dir / f"{version:06d}", ignore_errors=True)
    wire = _Wire(self.timeout_s, self.headers)

    def load(url):
      for path, body in self.dialect.load(str(directory)):
        wire.ask((url,), path, body, tries=self.tries, advice=f"; {self.dialect.load_needs}")

    try:
      outcomes = _start(self.urls, len(self.urls), load)
      for _ in self.urls:
        _, outcome = outcomes.get()
        if isinstance(outcome, BaseException):
          raise outcome
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
      watch: called with the groups that became complete, in this thread; when it returns True the requests under way
        are given up and their samples come back as they were, stop_reason "unfinished".
      pending: groups of an earlier call; their unfinished samples are continued, the others stay.
    Raises:
      EngineError: the servers failed; it carries the groups.
      ValueError: a prompt is empty, too long, or has ids outside the vocabulary; max_tokens is above the limit; or
        there was no `update` since the start or the last `release`.
    """
    self._check([*prompts, *(group[0].prompt for group in pending)], samples_per_prompt, sampling)
    groups = [[_at_limit(r, sampling) for r in group] for group in pending]
    groups += [[_unbegun(prompt, number) for number in range(samples_per_prompt)] for prompt in prompts]
    todo = [(g, i) for g, group in enumerate(groups) for i, r in enumerate(group) if r.stop_reason == "unfinished"]
    left = collections.Counter(g for g, _ in todo)  # samples to finish, by group
    complete = [group for g, group in enumerate(groups) if not left[g]]
    if complete and watch and watch(complete):
      return groups
    seeds = dict(zip(todo, _seeds(key, [groups[g][i] for g, i in todo]), strict=True))
    wire, began = _Wire(self.timeout_s, self.headers), time.perf_counter()
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
      outcomes = _start(todo, self.concurrency, work)
      while left.total():
        complete, error = place([outcomes.get(), *_arrived(outcomes)])
        if isinstance(error, EngineError):
          raise EngineError(str(error), groups) from error
        if error is not None:
          raise error
        if progress:
          progress(len(todo) - left.total(), len(todo))
        if complete and watch and watch(complete):
          break
      place(_arrived(outcomes))
    finally:
      wire.cut()
      self.usage.seconds = self.usage.decode_seconds = self.usage.last_sample_s = time.perf_counter() - began
      done = [(at, groups[at[0]][at[1]]) for at in todo]
      self.usage.lengths = [len(r.tokens) for _, r in done if r.finished]
      self.usage.tokens = sum(len(r.tokens) - before[at] for at, r in done)
    return groups

  def _sample(self, wire: _Wire, begun: Rollout, seed: int, home: int, sampling: Sampling) -> Rollout:
    """Has one response finished by a server, `home` counted round them the first choice."""
    have, first = len(begun.tokens), home % len(self.urls)
    rest = dataclasses.replace(
      sampling, max_tokens=sampling.max_tokens - have, min_tokens=max(0, sampling.min_tokens - have)
    )
    body = self.dialect.request([*begun.prompt.tokens.tolist(), *begun.tokens.tolist()], rest, seed, self.model_name)
    tokens, logp, reason = wire.ask(
      self.urls[first:] + self.urls[:first],
      self.dialect.path,
      body,
      tries=self.tries,
      read=lambda url, said: self._read(url, said, rest),
    )
    return dataclasses.replace(
      begun,
      tokens=np.concatenate([begun.tokens, np.array(tokens, np.int32)]),
      logp=np.concatenate([begun.logp, np.array(logp, np.float32)]),
      stop_reason=reason,
    )

  def _read(self, url: str, said, sampling: Sampling) -> tuple[list[int], list[float], str]:
    """(tokens, logp, stop_reason) of an answer, or what is wrong with it."""
    answer = self.dialect.answer(said)
    tokens, logp = answer.tokens, answer.logp
    if answer.reason == "abort":  # it was paused, or ran out of memory
      raise _TryAgain("gave the request up")
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
        f"{url} cut a response at {len(tokens)} of {sampling.max_tokens} tokens; start it with "
        f"{self.dialect.length_needs} of at least {self.max_prompt_tokens + self.max_response_tokens}."
      )
    return tokens, logp, "length"

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


# ---- requests ----


class _TryAgain(Exception):
  """An answer that another try may better."""


class _Cut(Exception):
  """The call is over."""


class _Wire:
  """The requests of one call. `cut` ends all of them at once, whatever their threads are waiting for."""

  def __init__(self, timeout_s: float, headers: dict[str, str]):
    self.timeout_s, self.headers = timeout_s, headers
    self._lock, self._sockets, self._over = threading.Lock(), set(), threading.Event()

  def ask(self, urls: tuple[str, ...], path: str, body: dict[str, Any], *, tries: int, read=None, advice: str = ""):
    """Asks round the servers until one answers: what `read` makes of (url, answer).

    Args:
      tries: in all. advice: what an error ends in.
    Raises:
      EngineError: no server answered, or one refused.
    """
    failed: dict[str, str] = {}
    for number in range(tries):
      url = urls[number % len(urls)]
      if self._over.wait(min(FIRST_WAIT_S * 2 ** (number - 1), LONGEST_WAIT_S) if number else 0):
        raise _Cut
      try:
        status, said = self._post(url, path, body)
        if status == 429 or status >= 500:
          raise _TryAgain(f"HTTP {status} {_quote(said)}")
        if status != 200:
          raise EngineError(f"{url}{path} refused with HTTP {status}: {_quote(said)}{advice}.")
        return read(url, json.loads(said)) if read else None
      except EngineError:
        raise
      except json.JSONDecodeError:
        raise EngineError(f"{url}{path} answered no JSON: {_quote(said)}; is it the server's root?") from None
      except TimeoutError:
        failed[url] = f"no answer within rollout.timeout_s={self.timeout_s:g}"
      except (OSError, http.client.HTTPException, _TryAgain) as error:
        failed[url] = getattr(error, "strerror", None) or str(error) or type(error).__name__
    causes = "; ".join(f"{url}: {why}" for url, why in failed.items())
    raise EngineError(
      f"no answer to {path} in {tries} {'try' if tries == 1 else 'tries'} ({causes}); see that the servers run and can "
      f"be reached, or raise rollout.timeout_s or rollout.retries{advice}."
    )

  def cut(self) -> None:
    """Ends every request, now and later."""
    self._over.set()
    with self._lock:
      for sock in self._sockets:
        with contextlib.suppress(OSError):
          socket.socket.shutdown(sock, socket.SHUT_RDWR)  # wakes its reader; past TLS, which would wait for the peer

  def _post(self, url: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """(status, text) of one request."""
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=self.timeout_s)
    try:
      connection.connect()
      sock = connection.sock
      with self._lock:
        if self._over.is_set():
          raise _Cut
        self._sockets.add(sock)
      try:
        connection.request("POST", parts.path + path, json.dumps(body), self.headers)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
      finally:
        with self._lock:
          self._sockets.discard(sock)
    finally:
      connection.close()


def _start(jobs: Sequence, count: int, work: Callable) -> queue.SimpleQueue:
  """Runs work(job) for all jobs in order, `count` at a time; the queue gets (job, what it returned or raised).

  Daemon threads: those of concurrent.futures are waited for at the end of the process, a silent server with them.
  """
  waiting, outcomes = queue.SimpleQueue(), queue.SimpleQueue()
  for job in jobs:
    waiting.put(job)

  def run():
    for job in _arrived(waiting):
      try:
        outcome = work(job)
      except _Cut:
        return
      except BaseException as error:  # noqa: BLE001 - raised again by the thread that reads the queue
        outcome = error
      outcomes.put((job, outcome))

  for _ in range(min(count, len(jobs))):
    threading.Thread(target=run, name="rollout-http", daemon=True).start()
  return outcomes


def _arrived(waiting: queue.SimpleQueue):
  """What is in the queue, without waiting for more."""
  with contextlib.suppress(queue.Empty):
    while True:
      yield waiting.get_nowait()


# ---- small things ----


def _unbegun(prompt: Prompt, number: int) -> Rollout:
  return Rollout(prompt, number, np.empty(0, np.int32), np.empty(0, np.float32), "unfinished")


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


def _dig(body, *steps):
  """body[step][step]... of parsed JSON, None where there is no such thing."""
  for step in steps:
    try:
      body = body[step]
    except (KeyError, IndexError, TypeError):
      return None
  return body


def _quote(text: str) -> str:
  """A server's words on one line, not too many of them."""
  return repr(" ".join(text.split())[:QUOTED])
