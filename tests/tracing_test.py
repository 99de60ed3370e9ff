"""A real trace of the trainer's programs on the CPU, and whether it reads like docs/metrics.md."""

import re

import jax
import pytest
from etils import epath
from jax.profiler import ProfileData

from fipo_jax import metrics, processes, tracing
from fipo_jax.train import batching
from tests import step_test
from tests.dashboards_test import bucket  # noqa: F401

SCORE = ("jit(score)/old_logp/while/body/forward/", "/attention/", "/mlp/", "/log_probs/", "/embed/")
UPDATE = (
  "jit(update)/while/body/jvp(forward)/", "jit(update)/while/body/transpose(jvp(forward))/",
  "jit(update)/while/body/jvp(loss)/future_kl/", "jit(update)/optimizer/", "/attention/", "/mlp/", "/log_probs/",
)  # fmt: skip


@pytest.fixture(scope="module")
def programs():
  """(name -> lowered program, name -> function of no arguments that runs it)"""
  mesh, abstract, steps = step_test.setup()
  packed = batching.pack(step_test.groups(), row_tokens=32, micro_rows=4, num_micro=4)
  with jax.set_mesh(mesh):
    batch, state = step_test.place(mesh, packed), step_test.fresh(abstract)
    lowered = {
      "update": steps.update.lower(state, batch, packed.used),
      "score": steps.score.lower(state.params, batch, packed.used),
    }  # fmt: skip

    def score():
      return jax.block_until_ready(steps.score(state.params, batch, packed.used))

    yield lowered, {"score": score, "update": lambda: steps.update(step_test.fresh(abstract), batch, packed.used)}


def test_operations_carry_the_names_of_their_stages_and_nothing_else_of_them_is_in_a_program(programs):
  for name, stages in (("score", SCORE), ("update", UPDATE)):
    lowered = programs[0][name]
    bare, named = lowered.as_text(), lowered.as_text(debug_info=True)
    assert [stage for stage in stages if stage not in named] == []
    # So a program that is named anew computes the same bits, and is found in the compile cache.
    assert not re.search("forward|old_logp|log_probs|future_kl/|optimizer/|attention/", bare)


def test_compiled_operations_have_those_names_in_their_metadata(programs):
  option = "jax_compilation_cache_include_metadata_in_key"  # else the cache gives what has other names, too
  jax.config.update(option, True)
  try:
    compiled = programs[0]["score"].compile().as_text()
  finally:
    jax.config.update(option, False)
  names = "\n".join(set(re.findall(r'op_name="([^"]*)"', compiled)))
  assert [stage for stage in SCORE if stage not in names] == []


def names_of(path):
  """(names of the host's events with the statistics of one each, all of the file's bytes)"""
  found = {}
  for plane in ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      found |= {event.name: event for event in line.events}
  return found, path.read_bytes()


@pytest.mark.filterwarnings("ignore:builtin type")
def test_a_trace_has_the_iterations_the_phases_and_the_stages(programs, tmp_path, capsys):
  programs[1]["score"]()
  timers, made = metrics.Timers(), []
  for step in tracing.iterations(range(3, 8), (2, 4, 5), tmp_path):
    with timers("old_logp"):
      programs[1]["score"]()
    made.append((step, len(list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")))))
  assert made == [(3, 0), (4, 0), (5, 0), (6, 1), (7, 1)]
  said = capsys.readouterr().out
  assert "log.profile_steps: no trace of 2; this start goes from 3 to 7" in said
  assert f"a trace of iterations 4, 5: `pip install xprof`, then `xprof --logdir={tmp_path}/profile`" in said
  (file,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
  events, raw = names_of(file)
  assert dict(events["iteration"].stats)["step_num"] == 5 and "old_logp" in events
  assert b"jit(score)/old_logp/while/body/forward/log_probs" in raw  # xprof shows an operation by its metadata


def test_what_ends_a_run_ends_its_trace_and_only_one_is_made_at_a_time(tmp_path, capsys, monkeypatch):
  with pytest.raises(KeyboardInterrupt):
    for _ in tracing.iterations(range(1, 9), (1, 2), tmp_path):
      raise KeyboardInterrupt
  assert len(list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1
  with jax.profiler.trace(str(tmp_path / "own")):
    assert list(tracing.iterations(range(1, 3), (1,), tmp_path / "second")) == [1, 2]
  assert "no trace of iteration 1: Profile has already been started" in capsys.readouterr().out
  assert not (tmp_path / "second").exists()
  (tmp_path / "profile2").write_text("a file where the folder would be")
  monkeypatch.setattr(processes, "index", lambda: 1)
  assert list(tracing.iterations(range(1, 3), (1,), tmp_path / "third")) == [1, 2]
  assert not (tmp_path / "third").exists()


def test_a_trace_goes_to_a_bucket(bucket, capsys):  # noqa: F811
  assert list(tracing.iterations(range(1, 3), (1,), "gs://bucket/run")) == [1, 2]
  (file,) = epath.Path("gs://bucket/run/profile").glob("plugins/profile/*/*.xplane.pb")
  assert len(file.read_bytes()) > 1000
  assert "`xprof --logdir=gs://bucket/run/profile`" in capsys.readouterr().out


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, capsys):
  (tmp_path / "profile").write_text("a file where the folder would be")
  assert list(tracing.iterations(range(1, 3), (1,), tmp_path)) == [1, 2]
  assert f"the trace of iterations 1 to 1 cannot be written to {tmp_path}/profile" in capsys.readouterr().out
