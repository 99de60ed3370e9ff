"""The HTTP engine against a real server process: the native engine behind vLLM's and SGLang's endpoints."""

import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from fipo_jax.models import PRESETS, hf, make_model
from fipo_jax.rollout import Sampling
from fipo_jax.rollout import http as http_lib
from fipo_jax.rollout import servers as servers_lib
from fipo_jax.rollout.dialects import DIALECTS
from fipo_jax.rollout.http import EngineError, HttpEngine
from fipo_jax.rollout.native import NativeEngine
from fipo_jax.sharding import make_mesh
from fipo_jax.types import Prompt
from tests.tolerances import close

CONFIG = dataclasses.replace(
  PRESETS["tiny"], vocab_size=40, num_layers=1, d_model=16, d_mlp=24, num_heads=2, num_kv_heads=1, head_dim=8,
  tie_embeddings=False,
)  # fmt: skip
MODEL = make_model(CONFIG)
KEY = jax.random.key(5)
EOS = 25  # the model's own end token, as the server has it
GREEDY = Sampling(temperature=0.0, max_tokens=12, stop_ids=(12, EOS))
DRAWN = Sampling(temperature=0.8, top_k=20, max_tokens=12, stop_ids=(12, EOS))
DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
SLOW_S = 600.0  # of the server's fault "slow"


def random_params(seed=3):
  leaves, tree = jax.tree.flatten(MODEL.abstract())
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return tree.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


PARAMS, OTHERS = random_params(), random_params(4)


def make_prompts(n=4):
  """Ragged prompts; one id is beyond 32 bits."""
  rng = np.random.default_rng(0)
  ids = [100 + 7 * i for i in range(n - 1)] + [2**40 + 3]
  return [Prompt(i, rng.integers(1, 40, rng.integers(1, 12)).astype(np.int32), "", "", "none") for i in ids]


PROMPTS = make_prompts()


def one_device():
  return make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def process(tmp_path_factory):
  """Address of the one server of this file; it speaks both dialects."""
  directory = tmp_path_factory.mktemp("served") / "model"
  hf.save(directory, OTHERS, CONFIG)  # nobody's weights until an update
  script = pathlib.Path(__file__).parent / "openai_server.py"
  arguments = ["--model", str(directory), "--dialect", *DIALECTS, "--eos", str(EOS)]
  with subprocess.Popen(
    [sys.executable, str(script), *arguments],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    # With as many devices as there are here it finds their compiled programs in the cache, and they its.
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
  ) as server:
    yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.stdin.close()  # its sign to end


@pytest.fixture
def server(process):
  """The same, with no faults and nothing seen."""
  fault(process, "", 0)
  seen(process)
  yield process
  fault(process, "", 0)


@pytest.fixture(scope="module")
def native():
  engine = NativeEngine(MODEL, one_device(), slots=1, max_prompt_tokens=56, max_response_tokens=24, pad_id=0)
  engine.update(PARAMS)
  return engine


@pytest.fixture(scope="module")
def whole(native):
  """The greedy responses, one of each prompt."""
  groups = native.generate(PROMPTS, 1, key=KEY, sampling=GREEDY)
  assert [len(r.tokens) for [r] in groups] == [3, 12, 12, 10]
  assert [r.stop_reason for [r] in groups] == ["stop", "length", "length", "stop"]
  return groups


@pytest.fixture
def make(server, tmp_path):
  """Makes engines that have their parameters."""

  def make(dialect="vllm", *, urls=None, params=PARAMS, **settings):
    settings = {"timeout_s": 600.0, "retry_s": 0.0, "concurrency": 4, "export_dir": str(tmp_path / "export")} | settings
    sizes = {"max_prompt_tokens": 40, "max_response_tokens": 12}
    lines = []
    own = {"urls": urls or (server,), "dialect": dialect, "template_dir": None, "text": as_text, "say": lines.append}
    engine = HttpEngine(MODEL, one_device(), **(own | sizes | settings))
    engine.lines = lines
    if params is not None:
      engine.update(params)
    return engine

  return make


def post(url, path, body):
  connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
  connection.request("POST", path, json.dumps(body))
  return json.loads(connection.getresponse().read())


def fault(url, kind, times, *paths):
  """The next requests for samples, or of these paths, go wrong."""
  post(url, "/_fault", {"kind": kind, "times": times} | ({"paths": paths} if paths else {}))


def seen(url):
  """Requests for samples since the last time."""
  return [r for r in post(url, "/_seen", None) if r["path"] in ("/v1/completions", "/generate")]


def asked(url):
  """Paths of all requests since the last time."""
  return [r["path"] for r in post(url, "/_seen", None)]


def restart(url):
  """The server starts anew while nothing is asked of it."""
  fault(url, "restart", 1, "/elsewhere")
  with contextlib.suppress(http.client.HTTPException, OSError):
    post(url, "/elsewhere", None)


def move(engine, *urls):
  """Asks these servers from now on, as if they had loaded what the others have."""
  old, engine.urls = engine.servers, urls
  engine.servers = servers_lib.Servers(urls, old.dialect, old.need, old.say)
  engine.servers.name = old.name


def as_text(tokens):
  """The server's own texts of tokens."""
  return "".join(f"<{t}>" for t in tokens)


def dead_url():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{free.getsockname()[1]}"


def assert_same(got, want):
  """The same responses, whichever engine they are from."""
  assert [[(r.prompt.id, r.sample, r.stop_reason, r.tokens.tolist()) for r in group] for group in got] == [
    [(r.prompt.id, r.sample, r.stop_reason, r.tokens.tolist()) for r in group] for group in want
  ]
  for r, s in zip(sum(got, []), sum(want, []), strict=True):
    assert r.tokens.dtype == np.int32 and r.logp.dtype == np.float32
    # Logits are sums of 16 products of normal numbers: 12 is three deviations.
    close(r.logp, s.logp, terms=2 * 16 + 2 * 8 + 24 + 16, scale=12)


# ---- the same samples as the native engine ----


@DIALECT
def test_greedy_equals_native_end_token_and_all(make, whole, dialect):
  calls = []
  got = make(dialect).generate(PROMPTS, 3, key=KEY, sampling=GREEDY, progress=lambda *x: calls.append(x))
  assert_same(got, [[dataclasses.replace(r, sample=i) for i in range(3)] for [r] in whole])
  assert got[0][0].tokens[-1] == EOS and got[3][2].tokens[-1] == 12
  assert calls[-1] == (12, 12) and sorted(calls) == calls


@DIALECT
def test_a_drawn_sample_is_that_of_its_seed(make, native, dialect):
  """(key, prompt.id, sample) -> the low 31 bits of the last word of the folded key, sent as the seed."""

  def alone(prompt, sample):
    key = jax.random.fold_in(jax.random.fold_in(KEY, prompt.id & 0xFFFFFFFF), sample)
    seed = int(jax.random.key_data(key)[-1]) & 0x7FFFFFFF
    [[r]] = native.generate(
      [dataclasses.replace(prompt, id=0)], 1, key=jax.random.key(seed), sampling=DRAWN
    )
    return dataclasses.replace(r, prompt=prompt, sample=sample)

  engine = make(dialect)
  got = engine.generate(PROMPTS, 2, key=KEY, sampling=DRAWN)
  assert_same(got, [[alone(prompt, i) for i in range(2)] for prompt in PROMPTS])
  assert all(a.tokens.tolist() != b.tokens.tolist() for a, b in got)
  other = engine.generate(PROMPTS, 2, key=jax.random.key(6), sampling=DRAWN)
  assert sum(a.tokens.tolist() == b.tokens.tolist() for a, b in zip(sum(got, []), sum(other, []), strict=True)) < 4


@DIALECT
def test_an_end_token_as_the_last_one_allowed(make, dialect):
  """SGLang calls it "length"."""
  [[r]] = make(dialect).generate(PROMPTS[:1], 1, key=KEY, sampling=dataclasses.replace(GREEDY, max_tokens=3))
  assert r.tokens[-1] == EOS and r.stop_reason == "stop"


@DIALECT
def test_stop_strings(make, whole, dialect):
  """The server's tokens read "<7>"; the string stays in the response."""
  second = int(whole[0][0].tokens[1])
  sampling = dataclasses.replace(GREEDY, stop_strings=(f"<{second}>",))
  [[r]] = make(dialect).generate(PROMPTS[:1], 1, key=KEY, sampling=sampling)
  assert r.tokens.tolist() == whole[0][0].tokens[:2].tolist() and r.stop_reason == "stop"


@DIALECT
def test_stop_strings_mean_the_same_as_in_the_native_engine(make, native, whole, dialect):
  """Across the border of a continued response; not before min_tokens; at the last token allowed."""
  tokens = whole[1][0].tokens
  text = lambda a, b: as_text(tokens[a:b])
  engine, native.text = make(dialect), as_text
  for cut_at, limit, least, string in [
    (5, 12, 0, text(4, 6)), (5, 12, 6, text(4, 6)), (0, 12, 4, text(2, 4)), (0, 12, 3, text(2, 4)),
    (0, 6, 0, text(4, 6)), (0, 3, 3, text(1, 2)), (4, 12, 5, text(2, 4)),
  ]:  # fmt: skip
    sampling = dataclasses.replace(GREEDY, stop_strings=(string,), min_tokens=least, max_tokens=limit)
    pending = [[cut(whole[1][0], cut_at)]]
    want = native.generate([], 1, key=KEY, sampling=sampling, pending=[[_from_native(r) for r in g] for g in pending])
    assert_same(engine.generate([], 1, key=KEY, sampling=sampling, pending=pending), want)


def _from_native(r):
  return dataclasses.replace(r, raw_logp=r.raw_logp[: len(r.tokens)])


def test_stop_strings_need_text(make):
  with pytest.raises(ValueError, match="sampling.stop_strings=.*no way to make text"):
    make(text=None).generate(PROMPTS, 1, key=KEY, sampling=dataclasses.replace(GREEDY, stop_strings=("a",)))


def test_only_the_stop_ids_end_a_response(make, whole):
  """vLLM leaves the model's own end token out when told to. SGLang does so only where there are no stop ids at all."""
  only_12, none = (dataclasses.replace(GREEDY, stop_ids=ids) for ids in ((12,), ()))
  sglang = make("sglang")
  [[r]] = sglang.generate(PROMPTS[:1], 1, key=KEY, sampling=none)
  tokens = r.tokens.tolist()
  assert tokens[:3] == whole[0][0].tokens.tolist() and len(tokens) == 12 and r.stop_reason == "length"
  with pytest.raises(EngineError, match=r"ended a response at token 25 .*not among the stop ids \[12\].*add it"):
    sglang.generate(PROMPTS[:1], 1, key=KEY, sampling=only_12)
  [[r]] = make().generate(PROMPTS[:1], 1, key=KEY, sampling=only_12)
  assert r.tokens.tolist() == tokens[: tokens.index(12) + 1] and EOS in r.tokens and r.stop_reason == "stop"


def test_every_setting_is_sent():
  sampling = Sampling(
    temperature=0.7, top_k=9, top_p=0.8, min_p=0.1, repetition_penalty=1.2, min_tokens=2, max_tokens=6, stop_ids=(4, 5),
    stop_strings=("end",),
  )  # fmt: skip
  same = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.2, "stop": ["end"]}
  same |= {"stop_token_ids": [4, 5], "skip_special_tokens": False}
  assert DIALECTS["vllm"].request([1, 2], sampling, 3, "name") == same | {
    "model": "name", "prompt": [1, 2], "max_tokens": 6, "min_tokens": 2, "seed": 3, "logprobs": 0, "ignore_eos": True,
    "return_token_ids": True, "include_stop_str_in_output": True,
  }  # fmt: skip
  assert DIALECTS["sglang"].request([1, 2], sampling, 3, "name") == {
    "input_ids": [1, 2], "return_logprob": True,
    "sampling_params": same | {
      "max_new_tokens": 6, "min_new_tokens": 2, "sampling_seed": 3, "ignore_eos": False, "no_stop_trim": True,
    },
  }  # fmt: skip
  assert DIALECTS["sglang"].request([1], Sampling(), 3, "")["sampling_params"]["top_k"] == -1  # off; 0 is refused
  assert "model" not in DIALECTS["vllm"].request([1], Sampling(), 3, "")


def test_the_key_is_shown_and_the_model_named(make, server):
  make(api_key="secret", model_name="policy").generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY)
  [request] = seen(server)
  assert request["headers"]["Authorization"] == "Bearer secret" and request["body"]["model"] == "policy"


# ---- weights ----


@DIALECT
def test_an_update_changes_what_is_sampled(make, native, whole, dialect, tmp_path):
  engine = make(dialect)
  engine.update(OTHERS)
  try:
    native.update(OTHERS)
    others = native.generate(PROMPTS, 1, key=KEY, sampling=GREEDY)
  finally:
    native.update(PARAMS)
  assert all(a.tokens.tolist() != b.tokens.tolist() for [a], [b] in zip(others, whole, strict=True))
  assert_same(engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY), others)
  engine.update(PARAMS)
  assert_same(engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY), whole)
  assert engine.version == 3 and sorted(os.listdir(tmp_path / "export")) == ["000002", "000003"]
  again = make(dialect)  # after a restart: no server meets a path twice
  assert again.version == 4 and sorted(os.listdir(tmp_path / "export")) == ["000003", "000004"]


def test_vllm_forgets_the_keys_and_values_of_old_weights(make, server):
  make()
  assert asked(server)[1:3] == ["/collective_rpc", "/reset_prefix_cache?reset_running_requests=true"]


def test_a_failed_update_leaves_nothing_to_sample_from(make, server):
  engine = make()
  move(engine, server, f"{server}/elsewhere")
  with pytest.raises(EngineError, match="elsewhere/collective_rpc refused with HTTP 404.*VLLM_SERVER_DEV_MODE=1"):
    engine.update(OTHERS)
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY)


@pytest.mark.parametrize(("dialect", "path"), [
  ("vllm", "/collective_rpc"), ("vllm", "/reset_prefix_cache?reset_running_requests=true"),
  ("sglang", "/update_weights_from_disk"),
])  # fmt: skip
def test_a_failed_load_is_not_tried_again(make, server, dialect, path):
  engine = make(dialect, params=None, retry_s=5.0)
  fault(server, "500", 1, path)
  with pytest.raises(EngineError, match=r"refused with HTTP 500.*kind 500.*it must see the directory"):
    engine.update(PARAMS)
  assert asked(server).count(path) == 1


def test_a_cache_that_was_not_reset(make, server, whole):
  """It may be in use for a moment, says vLLM; but nothing is sampled until it is reset."""
  path = "/reset_prefix_cache?reset_running_requests=true"
  fault(server, "unsuccessful", 2, path)
  with pytest.raises(EngineError, match=r"in 1 try \(.*reset_prefix_cache.* answered .*'success': False"):
    make(params=None).update(PARAMS)
  engine = make(retry_s=1.0)
  assert_same(engine.generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY), whole[:1])
  assert asked(server).count(path) == 3 and "'success': False" in engine.lines[0]


@DIALECT
def test_the_same_policy_is_pushed_once(make, server, tmp_path, dialect, monkeypatch):
  """Not even where another call let go of it; the servers are asked whether they have it."""
  monkeypatch.setattr(servers_lib, "SURE_S", 0.0)
  engine = make(dialect)
  asked(server)
  engine.release()
  engine.update(dict(PARAMS))  # a tree of its own, of the same arrays
  assert asked(server) == [engine.dialect.name_path]
  assert engine.version == 1 and sorted(os.listdir(tmp_path / "export")) == ["000001"]
  engine.generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY)
  restart(server)
  asked(server)
  engine.update(PARAMS)
  assert engine.dialect.load("")[0][0] in asked(server) and engine.version == 1
  engine.update(jax.tree.map(lambda x: x + 0, PARAMS))  # equal numbers, other arrays
  assert engine.version == 2


@DIALECT
def test_a_server_that_was_started_anew_gets_the_weights(make, server, whole, dialect, monkeypatch):
  monkeypatch.setattr(servers_lib, "SURE_S", 0.0)
  engine = make(dialect, concurrency=1)
  restart(server)
  assert_same(engine.generate(PROMPTS[:2], 1, key=KEY, sampling=GREEDY), whole[:2])
  [line] = engine.lines
  assert "was started anew, its weights are 'default'" in line and "000001 is loaded again" in line


@DIALECT
def test_a_server_that_is_started_anew_under_way_gets_the_weights(make, server, whole, dialect):
  engine = make(dialect, concurrency=1, retry_s=1.0)
  fault(server, "restart", 1)
  assert_same(engine.generate(PROMPTS[:2], 1, key=KEY, sampling=GREEDY), whole[:2])
  first, anew, last = engine.lines
  assert "trying again for rollout.retry_s=1 s" in first and "was started anew" in anew and "goes on" in last


def test_a_server_that_cannot_take_the_weights_again(make, server, tmp_path):
  engine = make(concurrency=1, retry_s=1.0)
  shutil.rmtree(tmp_path / "export")
  fault(server, "restart", 1)
  with pytest.raises(EngineError, match=r"collective_rpc refused with HTTP 500.*does not exist") as caught:
    engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY)
  assert [r.stop_reason for [r] in caught.value.groups] == ["unfinished"] * 4


def test_a_server_that_keeps_no_name(make, server, whole):
  """It is said, and a connection that breaks is reason enough to push the weights."""
  engine = make(params=None, concurrency=1, retry_s=1.0)
  fault(server, "404", 10, "/update_weight_version", "/weight_info")
  engine.update(PARAMS)
  [line] = engine.lines
  assert "keeps no name of its weights (in /weight_info)" in line
  asked(server)
  engine.update(PARAMS)  # whether it has them cannot be known
  assert "/collective_rpc" in asked(server) and engine.version == 1 and len(engine.lines) == 1
  fault(server, "restart", 1)
  assert_same(engine.generate(PROMPTS[:2], 1, key=KEY, sampling=GREEDY), whole[:2])
  assert "was lost for a while" in engine.lines[2]


@DIALECT
def test_the_context_is_asked_for_at_the_first_update(make, server, tmp_path, dialect):
  engine = make(dialect, params=None, max_prompt_tokens=45 - DIALECTS[dialect].spare)  # one too many
  with pytest.raises(EngineError, match=r"context of 56 tokens; start it with --.* of at least 57 = data.max_prompt"):
    engine.update(PARAMS)
  assert not (tmp_path / "export").exists() and asked(server) == ["/v1/models"]
  engine = make(dialect)
  engine.update(OTHERS)
  assert asked(server).count("/v1/models") == 1 and engine.lines == []
  fault(server, "404", 1, "/v1/models")
  engine = make(dialect)
  assert "does not say in /v1/models how long its context is; start it with --" in engine.lines[0]


# ---- unfinished groups ----


def cut(rollout, tokens=5):
  """The rollout as it was when it had fewer tokens."""
  return dataclasses.replace(
    rollout, tokens=rollout.tokens[:tokens], logp=rollout.logp[:tokens], stop_reason="unfinished"
  )


@DIALECT
def test_pending_groups_are_continued(make, server, whole, dialect):
  """Finished samples stay, one at the limit is finished, and new prompts come after."""
  full = dataclasses.replace(whole[1][0], stop_reason="unfinished", sample=1)
  kept = dataclasses.replace(whole[3][0], sample=1, score=0.5)
  pending = [[cut(whole[1][0]), full], [cut(whole[3][0]), kept]]
  calls = []
  got = make(dialect).generate(
    PROMPTS[2:3], 1, key=KEY, sampling=GREEDY, pending=pending, progress=lambda *x: calls.append(x)
  )
  assert_same(got, [[whole[1][0], dataclasses.replace(full, stop_reason="length")], [whole[3][0], kept], whole[2]])
  assert got[1][1] is kept and pending[0][0].stop_reason == "unfinished"
  assert calls[-1] == (3, 3)
  asked = [r["body"] for r in seen(server)]
  limit = lambda body: body.get("max_tokens") or body["sampling_params"]["max_new_tokens"]
  assert sorted(limit(body) for body in asked) == [7, 7, 12]


def test_a_continued_response_has_its_own_seed_and_the_rest_of_min_tokens(make, server, whole):
  sampling, seeds = dataclasses.replace(DRAWN, min_tokens=8), {}
  for tokens in (0, 5, 6):
    fault(server, "400", 1)
    with pytest.raises(EngineError):
      make().generate([], 1, key=KEY, sampling=sampling, pending=[[cut(whole[1][0], tokens)]])
    [request] = seen(server)
    assert request["body"]["min_tokens"] == 8 - tokens
    seeds[tokens] = request["body"]["seed"]
  assert len(set(seeds.values())) == 3


def test_watch_ends_a_call_early_and_nothing_is_lost(make, whole):
  engine, told = make(concurrency=1), []
  got = engine.generate(
    PROMPTS, 1, key=KEY, sampling=GREEDY, watch=lambda groups: told.extend(groups) or len(told) == 2
  )
  assert [group[0].prompt.id for group in told] == [100, 107]  # one request at a time: in order
  assert_same(got[:2], whole[:2])
  assert got[3][0].stop_reason == "unfinished" and len(got[3][0].tokens) == 0
  assert_same(engine.generate([], 1, key=KEY, sampling=GREEDY, pending=got), whole)


def test_watch_does_not_wait_for_requests_under_way(make, server, whole):
  engine = make(concurrency=2)
  fault(server, "slow", 1)
  started = time.monotonic()
  got = engine.generate(PROMPTS[1:3], 1, key=KEY, sampling=GREEDY, watch=lambda groups: True)
  assert time.monotonic() - started < SLOW_S / 2
  assert sorted(r.stop_reason for [r] in got) == ["length", "unfinished"]
  assert_same(engine.generate([], 1, key=KEY, sampling=GREEDY, pending=got), whole[1:3])


def test_watch_is_asked_while_servers_are_silent(make, server, monkeypatch):
  """So a run that is told to stop does not wait for the longest response."""
  monkeypatch.setattr(http_lib, "LOOK_S", 0.05)
  engine = make()
  fault(server, "slow", 30)
  looks = iter([False, False, True])
  got = engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY, watch=lambda groups: not groups and next(looks))
  assert {r.stop_reason for [r] in got} == {"unfinished"} and next(looks, None) is None


def test_no_prompts_is_no_work(make, server):
  assert make().generate([], 4, key=KEY, sampling=GREEDY) == [] and seen(server) == []


def test_ctrl_c_waits_for_nobody(make, server):
  """Neither the caller nor the threads stay with a server that is silent."""

  def interrupt(*_):
    raise KeyboardInterrupt

  engine = make()
  fault(server, "slow", 3)
  started = time.monotonic()
  with pytest.raises(KeyboardInterrupt):
    engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY, progress=interrupt)
  threads = [t for t in threading.enumerate() if t.name == "rollout-http"]
  assert all(t.daemon for t in threads)
  for thread in threads:
    thread.join(SLOW_S / 3)
  assert not any(t.is_alive() for t in threads) and time.monotonic() - started < SLOW_S / 2


# ---- servers that fail ----


@pytest.mark.parametrize("kind", ["500", "503", "429", "drop", "abort"])
def test_passing_faults_are_tried_again(make, server, whole, kind):
  engine = make(retry_s=1.0, concurrency=1)
  fault(server, kind, 2)
  assert_same(engine.generate(PROMPTS[:2], 1, key=KEY, sampling=GREEDY), whole[:2])
  assert len(seen(server)) == 4


def test_retrying_is_said_once_and_so_is_its_end(make, server, whole):
  engine = make(retry_s=5.0, concurrency=4)
  fault(server, "503", 6)
  assert_same(engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY), whole)
  first, last = engine.lines
  assert first.startswith(f"{server}: HTTP 503") and first.endswith("trying again for rollout.retry_s=5 s")
  assert last.startswith(f"{server} answers, after ") and last.endswith("sampling goes on")


def test_the_first_cause_is_kept(make, server):
  engine, dead = make(retry_s=0.2, concurrency=1), dead_url()
  move(engine, server, dead)
  fault(server, "503", 1)
  said = rf"in 2 tries \(first {server}: HTTP 503 .*kind 503.*; at last {dead}: Connection refused\); see that"
  with pytest.raises(EngineError, match=said):
    engine.generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY)


def test_a_silent_server_is_asked_again(make, server, whole):
  engine = make("sglang", retry_s=0.15, concurrency=1)
  ask = lambda: engine.generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY)
  ask()  # compiles
  began = time.monotonic()
  ask()
  patience = engine.timeout_s = max(1.0, round(10 * (time.monotonic() - began), 1))
  fault(server, "slow", 1)
  assert_same(ask(), whole[:1])
  fault(server, "slow", 2)
  said = rf"in 2 tries \(http://127.*no answer within rollout.timeout_s={patience:g}\)"
  with pytest.raises(EngineError, match=said):
    ask()


def test_a_prompt_stays_with_its_server_and_prompts_go_round(make, server):
  other = server.replace("127.0.0.1", "localhost")  # the same server under two names
  make(urls=(server, other)).generate(PROMPTS, 3, key=KEY, sampling=GREEDY)
  asked = {(tuple(r["body"]["prompt"]), r["headers"]["Host"].split(":")[0]) for r in seen(server)}
  hosts = ["127.0.0.1", "localhost"] * 2
  assert asked == {(tuple(p.tokens.tolist()), host) for p, host in zip(PROMPTS, hosts, strict=True)}


def test_a_dead_server_is_replaced_by_the_next(make, server, whole):
  engine = make(retry_s=1.0)
  move(engine, dead_url(), server)
  assert_same(engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY), whole)


def test_all_servers_dead_and_what_was_finished(make, server, whole):
  engine = make(retry_s=0.15, concurrency=1)
  dead = dead_url()
  move(engine, server, dead)
  with pytest.raises(EngineError, match=rf"in 2 tries \(.*{server}: .*; see that the servers run") as caught:
    engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY, watch=lambda groups: fault(server, "drop", 1000))
  assert f"{dead}: Connection refused" in str(caught.value) and "\n" not in str(caught.value)
  groups = caught.value.groups
  assert [r.prompt.id for [r] in groups] == [p.id for p in PROMPTS]
  assert_same(groups[:1], whole[:1])
  assert groups[-1][0].stop_reason == "unfinished"
  fault(server, "", 0)
  move(engine, server)
  assert_same(engine.generate([], 1, key=KEY, sampling=GREEDY, pending=groups), whole)


@pytest.mark.parametrize(("dialect", "kind", "message"), [
  ("vllm", "nologprobs", "answered without log-probabilities: it must know return_token_ids and logprobs"),
  ("vllm", "noids", "answered without token ids: it must know return_token_ids"),
  ("vllm", "short", "answered 3 token ids but 2 log-probabilities"),
  ("vllm", "nan", "log-probabilities that are no finite numbers"),
  ("sglang", "nologprobs", "answered without token ids: it must know return_logprob"),
  ("vllm", "400", "/v1/completions refused with HTTP 400: .*a fault of.*kind 400"),
  ("vllm", "html", "/v1/completions answered no JSON: '<html>hello</html>'; is it the server's root"),
])  # fmt: skip
def test_answers_that_cannot_be_used(make, server, dialect, kind, message):
  engine = make(dialect, retry_s=5.0)
  fault(server, kind, 1)
  with pytest.raises(EngineError, match=f"{server}.*{message}") as caught:
    engine.generate(PROMPTS[:1], 1, key=KEY, sampling=GREEDY)
  assert len(seen(server)) == 1 and [r.stop_reason for [r] in caught.value.groups] == ["unfinished"]


@pytest.mark.parametrize(("dialect", "tokens", "message"), [
  ("vllm", 50, r"cut a response at 6 of 12 tokens"),
  ("vllm", 56, r"HTTP 400: .*maximum context length is 56 tokens.*"),
  ("sglang", 50, r"HTTP 400: .*maximum context length is 56 tokens.*"),
])  # fmt: skip
def test_a_server_without_room_for_the_response(make, dialect, tokens, message):
  """It cuts the response, which is not our "length", or refuses."""
  engine = make(dialect)
  engine.max_prompt_tokens, engine.servers.need = 60, 72  # after it was asked for its limit
  long = dataclasses.replace(PROMPTS[0], tokens=np.resize(PROMPTS[0].tokens, tokens))
  with pytest.raises(EngineError, match=message + r"; start it with --.* of at least 7[23] = data.max_prompt_tokens"):
    engine.generate([long], 1, key=KEY, sampling=dataclasses.replace(GREEDY, stop_ids=()))


def test_another_model_is_noticed(make):
  engine = make()
  engine.model = make_model(dataclasses.replace(CONFIG, vocab_size=13))
  small = [dataclasses.replace(PROMPTS[0], tokens=np.array([1, 2], np.int32))]
  with pytest.raises(EngineError, match=r"token id outside 0..12; does it serve this model"):
    engine.generate(small, 1, key=KEY, sampling=dataclasses.replace(GREEDY, stop_ids=(12, EOS)))


# ---- user errors ----


@pytest.mark.parametrize(("settings", "message"), [
  ({"urls": ()}, "rollout.urls is empty"),
  ({"urls": ("127.0.0.1:8000",)}, "rollout.urls has '127.0.0.1:8000', which must be the root"),
  ({"urls": ("http://a", "ftp://b")}, "rollout.urls has 'ftp://b'"),
  ({"urls": ("http://a:port",)}, "rollout.urls has 'http://a:port'"),
  ({"urls": ("http://a:8000/v1/",)}, "leave out /v1"),
  ({"dialect": "tgi"}, r"rollout.dialect='tgi' is unknown; choose from \['sglang', 'vllm'\]"),
  ({"timeout_s": 0.0}, "rollout.timeout_s=0.0 must be a positive"),
  ({"timeout_s": float("nan")}, "rollout.timeout_s=nan"),
  ({"retry_s": -1.0}, "rollout.retry_s=-1"),
  ({"concurrency": 0}, "rollout.concurrency=0 must be at least 1"),
  ({"max_prompt_tokens": 0}, "rollout.max_prompt_tokens=0"),
  ({"max_response_tokens": 0}, "rollout.max_response_tokens=0"),
  ({"export_dir": ""}, "rollout.export_dir is empty"),
])  # fmt: skip
def test_settings_that_are_refused(settings, message):
  good = {"urls": ("http://a",), "dialect": "vllm", "timeout_s": 1.0, "retry_s": 0.0, "concurrency": 1}
  good |= {"export_dir": "x", "template_dir": None, "max_prompt_tokens": 4, "max_response_tokens": 4}
  HttpEngine(MODEL, None, **good)
  with pytest.raises(ValueError, match=message):
    HttpEngine(MODEL, None, **(good | settings))


def test_more_than_one_process_is_refused(monkeypatch, make):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="runs in one process, not 2; use 'native'"):
    make(params=None)


def test_calls_that_are_refused(make, server, whole):
  engine = make()
  wrong = [
    ([1] * 41, "prompt id=77 has 41 tokens.*rollout.max_prompt_tokens=40"),
    ([], "prompt id=77 has 0 tokens"),
    ([3, 40], "prompt id=77 has a token id outside 0..39"),
    ([-1], "prompt id=77 has a token id outside"),
  ]
  for tokens, message in wrong:
    prompt = dataclasses.replace(PROMPTS[0], id=77, tokens=np.array(tokens, np.int32))
    with pytest.raises(ValueError, match=message):
      engine.generate([*PROMPTS, prompt], 1, key=KEY, sampling=GREEDY)
    with pytest.raises(ValueError, match=message):
      engine.generate([], 1, key=KEY, sampling=GREEDY, pending=[[dataclasses.replace(cut(whole[1][0]), prompt=prompt)]])
  with pytest.raises(ValueError, match="sampling.max_tokens=13 .*rollout.max_response_tokens=12"):
    engine.generate(PROMPTS, 1, key=KEY, sampling=dataclasses.replace(GREEDY, max_tokens=13))
  with pytest.raises(ValueError, match="samples_per_prompt=0"):
    engine.generate(PROMPTS, 0, key=KEY, sampling=GREEDY)
  engine.release()
  with pytest.raises(ValueError, match=r"call update\(params\)"):
    engine.generate(PROMPTS, 1, key=KEY, sampling=GREEDY)
  assert seen(server) == []
