"""A small server for tests: a Hugging Face directory behind HTTP, sampled by the native engine.

It speaks as much of vLLM and SGLang as `fipo_jax.rollout.http` uses, and is as strict: a field that is not sent has
the server's own default, not ours. Tokens have no text; where text counts, token 7 reads "<7>".

  python openai_server.py --model DIR --dialect vllm sglang --eos 5

prints its port and serves until its standard input ends. For tests only: POST /_fault {"kind", "times", "paths"} makes
the next requests of these paths go wrong (of none: those for samples), {"times": 0} ends that; POST /_seen returns the
requests since it was last asked. The fault "restart" loses the connection and starts anew: with the weights of --model.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
# Compiling is most of what this server does; what it runs is tiny.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np

from fipo_jax.models import hf, make_model
from fipo_jax.rollout import ENGINES, Sampling
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt

LONGEST = 24  # tokens of a response, and of the program; a request's own limit only cuts
CONTEXT = 56  # tokens of prompt and response
SLOW_S = 600.0  # longer than any test waits


class Refused(Exception):
  """Answered with HTTP 400."""


class Broken(Exception):
  """Answered with HTTP 500."""


class Sampler:
  """The model, one request at a time."""

  def __init__(self, directory: str):
    self.model = make_model(hf.read_config(directory))
    self.mesh = make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])
    self.engine = ENGINES["native"](
      self.model, self.mesh, slots=1, max_prompt_tokens=CONTEXT, max_response_tokens=LONGEST, pad_id=0
    )
    self.lock, self.directory, self.name = threading.Lock(), directory, ""
    self.restart()

  def restart(self) -> None:
    """As it was when the process began."""
    self.load(self.directory)
    self.name = "default"

  def load(self, directory: str) -> None:
    """Takes the weights of another directory."""
    if not pathlib.Path(directory).is_dir():
      raise Broken(f"{directory} does not exist")
    with self.lock:
      self.engine.update(hf.load(directory, self.model, self.mesh))

  def sample(self, tokens, *, seed, limit, stop_ids, stop_strings, stops_after=0, strict=False, **drawn):
    """(tokens, log-probabilities, finish reason, what matched); the token that ended it is among them.

    stops_after: tokens up to which stop strings are not looked for. strict: a response that may become too long is
    refused, not cut.
    """
    if limit > LONGEST or not 1 <= len(tokens) < CONTEXT or (strict and len(tokens) + limit >= CONTEXT):
      raise Refused(
        f"This model's maximum context length is {CONTEXT} tokens. However, your prompt contains {len(tokens)} input "
        f"tokens, and {limit} were requested."
      )
    prompt = Prompt(0, np.array(tokens, np.int32), "", "", "none")
    sampling = Sampling(max_tokens=LONGEST, stop_ids=tuple(sorted(stop_ids)), **drawn)
    with self.lock:
      [[r]] = self.engine.generate([prompt], 1, key=jax.random.key(seed or 0), sampling=sampling)
    limit = min(limit, CONTEXT - len(tokens))
    text, ids, logp = "", r.tokens[:limit].tolist(), r.logp[:limit].tolist()
    for n, token in enumerate(ids, 1):
      known, text = len(text), text + f"<{token}>"
      for string in stop_strings:
        if n > stops_after and string in text[max(0, known - len(string) + 1) :]:
          return ids[:n], logp[:n], "stop", string
    if ids[-1] in stop_ids:
      return ids, logp, "stop", ids[-1]
    return ids, logp, "length", None


def common(sent: dict) -> dict:
  """Fields of the same name and meaning in both dialects, and their defaults."""
  defaults = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
  return {name: sent.get(name, default) for name, default in defaults.items()}


def completions(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  """vLLM's /v1/completions."""
  ignore, keep_stop = body.get("ignore_eos", False), body.get("include_stop_str_in_output", False)
  tokens, logp, reason, matched = sampler.sample(
    body["prompt"],
    seed=body.get("seed"),
    limit=body.get("max_tokens", 16),
    stop_ids={*body.get("stop_token_ids", ()), *(() if ignore else (eos,))},
    stop_strings=body.get("stop", ()),
    stops_after=body.get("min_tokens", 0),
    top_k=max(0, body.get("top_k", 0)),
    min_tokens=body.get("min_tokens", 0),
    **common(body),
  )
  if reason == "stop" and not keep_stop:  # harsher than vLLM, which leaves it out of the text only
    tokens, logp = tokens[:-1], logp[:-1]
  logp = {"nan": [float("nan"), *logp[1:]], "short": logp[:-1]}.get(fault, logp)
  asked = body.get("logprobs") is not None and fault != "nologprobs"
  return {
    "choices": [
      {
        "index": 0,
        "text": "",
        "finish_reason": "abort" if fault == "abort" else reason,
        "stop_reason": matched,
        "logprobs": {"token_logprobs": logp} if asked else None,
        "token_ids": tokens if body.get("return_token_ids") and fault != "noids" else None,
      }
    ]
  }


def generate(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  """SGLang's /generate."""
  sent = body["sampling_params"]
  if sent.get("top_k", -1) == 0:
    raise Refused("top_k must be -1 (disable) or at least 1, got 0.")
  limit = sent.get("max_new_tokens", 128)
  tokens, logp, reason, matched = sampler.sample(
    body["input_ids"],
    seed=sent.get("sampling_seed"),
    limit=limit,
    stop_ids=set() if sent.get("ignore_eos", False) else {*sent.get("stop_token_ids", ()), eos},
    stop_strings=sent.get("stop", ()),
    strict=True,
    top_k=max(0, sent.get("top_k", -1)),
    min_tokens=sent.get("min_new_tokens", 0),
    **common(sent),
  )
  finish = {"type": "stop", "matched": matched}
  if reason == "length" or len(tokens) == limit:  # looked at first
    finish = {"type": "length", "length": limit}
  finish = {"type": "abort", "message": "test"} if fault == "abort" else finish
  asked = body.get("return_logprob", False) and fault != "nologprobs"
  pairs = [[x, t, None] for x, t in zip(logp, tokens, strict=True)]
  return {"text": "", "meta_info": {"finish_reason": finish} | ({"output_token_logprobs": pairs} if asked else {})}


def collective_rpc(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  if body["method"] != "reload_weights":
    raise Refused(f"no method {body['method']}")
  sampler.load(body["kwargs"]["weights_path"])
  return {"results": [None]}


def reset_prefix_cache(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  return {"success": fault != "unsuccessful"}


def update_weight_version(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  sampler.name = body["new_version"]
  return {"success": True, "new_version": sampler.name}


def update_weights_from_disk(sampler: Sampler, eos: int, body: dict, fault: str) -> dict:
  sampler.load(body["model_path"])
  sampler.name = body.get("weight_version") or sampler.name
  return {"success": True, "message": "", "num_paused_requests": 0}


def models(sampler: Sampler, *_) -> dict:
  return {"object": "list", "data": [{"id": sampler.directory, "object": "model", "max_model_len": CONTEXT}]}


def weight_info(sampler: Sampler, *_) -> dict:
  return {"weight_version": sampler.name}


PATHS = {
  "vllm": {
    "/v1/models": models,
    "/v1/completions": completions,
    "/collective_rpc": collective_rpc,
    "/reset_prefix_cache?reset_running_requests=true": reset_prefix_cache,
    "/update_weight_version": update_weight_version,
    "/weight_info": weight_info,
  },
  "sglang": {
    "/v1/models": models,
    "/generate": generate,
    "/update_weights_from_disk": update_weights_from_disk,
    "/get_model_info": weight_info,
  },
}
SAMPLES = ("/v1/completions", "/generate")


def make_handler(sampler: Sampler, dialects: list[str], eos: int):
  paths = {path: answer for dialect in dialects for path, answer in PATHS[dialect].items()}
  lock, fault, seen = threading.Lock(), {"kind": "", "times": 0, "paths": SAMPLES}, []

  def take_fault(path: str) -> str:
    with lock:
      if path not in fault["paths"] or not fault["times"]:
        return ""
      fault["times"] -= 1
      return fault["kind"]

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      with contextlib.suppress(OSError):
        self.answer(None)

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "null")
      with contextlib.suppress(OSError):  # the client hung up
        self.answer(body)

    def answer(self, body) -> None:
      if self.path == "/_fault":
        with lock:
          fault.update({"paths": SAMPLES} | body)
        return self.say(200, {})
      if self.path == "/_seen":
        with lock:
          told = list(seen)
          seen.clear()
        return self.say(200, told)
      with lock:
        headers = {name: self.headers[name] for name in ("Host", "Authorization")}
        seen.append({"path": self.path, "headers": headers, "body": body})
      kind = take_fault(self.path)
      if kind == "restart":
        sampler.restart()
      if kind in ("drop", "restart"):
        return None
      if kind == "slow":
        time.sleep(SLOW_S)
      if kind.isdigit():
        return self.say(int(kind), {"error": {"message": f"a fault of\nkind {kind}"}})
      if kind == "html":
        return self.say(200, None, b"<html>hello</html>")
      if self.path not in paths:
        return self.say(404, {"detail": "Not Found"})
      try:
        return self.say(200, paths[self.path](sampler, eos, body, kind))
      except Refused as error:
        return self.say(400, {"error": {"message": str(error)}})
      except Broken as error:
        return self.say(500, {"error": {"message": str(error)}})

    def say(self, status: int, content, data: bytes | None = None) -> None:
      data = (b"" if content is None else json.dumps(content).encode()) if data is None else data
      self.send_response(status)
      self.send_header("Content-Length", str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *_):
      pass

  return Handler


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--model", required=True)
  parser.add_argument("--port", type=int, default=0)
  parser.add_argument("--dialect", nargs="+", choices=sorted(PATHS), required=True)
  parser.add_argument("--eos", type=int, required=True, help="the model's own end token")
  args = parser.parse_args()
  handler = make_handler(Sampler(args.model), args.dialect, args.eos)
  server = http.server.ThreadingHTTPServer(("127.0.0.1", args.port), handler)
  print(server.server_address[1], flush=True)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  sys.stdin.read()  # ends with the test that started it, however that ends
  os._exit(0)


if __name__ == "__main__":
  main()
