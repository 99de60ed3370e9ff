"""How vLLM and SGLang are spoken to: requests and answers, weights, and what each can do.

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

import dataclasses
from collections.abc import Callable
from typing import Any

from fipo_jax.rollout.sampling import Sampling


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
  rename: name -> (path, body) of the request that names the weights, None where `load` does. name_path: where to ask
    for that name ("weight_version"); another one at each start of the server.
  spare: tokens of a server's context that a response never fills.
  needs, load_needs, length_needs: what errors ask of the server: when it answers without ids or log-probabilities,
    when it does not take weights, and (an option) when it has no room for a response.
  """

  path: str
  request: Callable[[list[int], Sampling, int, str], dict[str, Any]]
  answer: Callable[[Any], Answer]
  load: Callable[[str], list[tuple[str, dict[str, Any]]]]
  rename: Callable[[str], tuple[str, dict[str, Any]]] | None
  name_path: str
  spare: int
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
  choice = dig(body, "choices", 0)
  return Answer(
    tokens=dig(choice, "token_ids"),
    logp=dig(choice, "logprobs", "token_logprobs"),
    reason=dig(choice, "finish_reason"),
    matched=dig(choice, "stop_reason"),
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
  said = dig(body, "meta_info", "output_token_logprobs")  # [log-probability, id, text] of each token
  pairs = said if isinstance(said, list) else None
  return Answer(
    tokens=None if pairs is None else [dig(pair, 1) for pair in pairs],
    logp=None if pairs is None else [dig(pair, 0) for pair in pairs],
    reason=dig(body, "meta_info", "finish_reason", "type"),
    matched=dig(body, "meta_info", "finish_reason", "matched"),
  )


DIALECTS: dict[str, Dialect] = {
  "vllm": Dialect(
    path="/v1/completions",
    request=_vllm_request,
    answer=_vllm_answer,
    load=_vllm_load,
    rename=lambda name: ("/update_weight_version", {"new_version": name}),
    name_path="/weight_info",
    spare=0,
    needs="it must know return_token_ids and logprobs (vLLM 0.10.2 or later)",
    load_needs="it must see the directory, be of February 2026 or later, and be started with VLLM_SERVER_DEV_MODE=1",
    length_needs="--max-model-len",
  ),
  "sglang": Dialect(
    path="/generate",
    request=_sglang_request,
    answer=_sglang_answer,
    load=lambda name: [("/update_weights_from_disk", {"model_path": name, "weight_version": name})],
    rename=None,
    name_path="/get_model_info",
    spare=1,
    needs="it must know return_logprob (an SGLang server asked at its own port)",
    load_needs="it must see the directory",
    length_needs="--context-length",
  ),
}


def dig(body, *steps):
  """body[step][step]... of parsed JSON, None where there is no such thing."""
  for step in steps:
    try:
      body = body[step]
    except (KeyError, IndexError, TypeError):
      return None
  return body


