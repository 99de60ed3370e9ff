"""The golden command passes on the reference's numbers, and does not pass on others."""

import json
import pathlib
import shutil

import golden_check
import golden_other_kinds
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fipo_jax.models import hf, make_model
from fipo_jax.sharding import make_mesh

GOLDEN = pathlib.Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


def select(folder, *files, index=True):
  """A folder with these cases only."""
  for name in files:
    shutil.copy(GOLDEN / name, folder / name)
  if index:
    (folder / "index.json").write_text(json.dumps([e for e in INDEX if e["file"] in files]))
  return folder


def change(folder, name, **arrays):
  """Replaces arrays of one case by functions of them."""
  z = dict(np.load(folder / name))
  for key, f in arrays.items():
    z[key] = f(z[key].copy())
  np.savez(folder / name, **z)


def put(at, value):
  def f(x):
    x[at] = value(x[at])
    return x

  return f


@pytest.mark.parametrize("kind", sorted({e["kind"] for e in INDEX}))
def test_golden_cases_pass(kind, capsys):
  assert golden_check.main([str(GOLDEN), "--kind", kind]) == 0, capsys.readouterr().out
  assert "cases within tolerance" in capsys.readouterr().out


@pytest.mark.parametrize(
  "name, arrays",
  [
    ("fkl_p01_released_small.npz", {"future_kl": put((1, 2), lambda x: x + 1e-9)}),
    ("fkl_p01_released_small.npz", {"grad_log_prob": put((0, 0), lambda x: x + 1e-8)}),
    ("fkl_p01_released_small.npz", {"metric_values": put(4, lambda x: x + 1e-5)}),
    ("fkl_p01_released_small.npz", {"final_mask": put((0, 0), lambda x: 1 - x)}),
    ("ppo_p01_dapo.npz", {"pg_loss": lambda x: x * np.nan}),
    ("gspo_p02_wide.npz", {"seq_ratio": put((0, 0), lambda x: x + 1e-8)}),
    ("grpo_p03_interleaved_singletons.npz", {"advantages": put((0, 0), lambda x: x + 1e-8)}),
    ("agg_p01_ragged.npz", {"loss_token_mean": lambda x: x + 1e-8}),
  ],
)
def test_a_corrupted_case_fails(tmp_path, capsys, name, arrays):
  change(select(tmp_path, name), name, **arrays)
  assert golden_check.main([str(tmp_path)]) == 1
  assert "MISMATCHES:" in capsys.readouterr().out


def test_an_export_that_differs_is_seen():
  """By a bit of one tensor, by one that is missing, by the model that it says it is."""
  folder = GOLDEN / "qwen3/untied_gqa"
  model = make_model(hf.read_config(folder))
  params = hf.load(folder, model, make_mesh(dict(data=1, fsdp=1, context=1, tensor=1), jax.devices()[:1]))

  def mismatches(model, params):
    report = golden_check.Report()
    golden_other_kinds.check_export(report, model, params, folder)
    return report.mismatches

  assert mismatches(model, params) == []
  attention = params["layers"]["attention"]
  other = lambda **parts: params | {"layers": params["layers"] | {"attention": attention | parts}}
  scale_Lh = np.array(attention["q_scale_h"])
  scale_Lh[1, 3] = np.nextafter(scale_Lh[1, 3], 9)
  seen = mismatches(model, other(q_scale_h=jnp.asarray(scale_Lh)))
  assert len(seen) == 2 and all("layers.1.self_attn.q_norm.weight" in line for line in seen)
  left_out = {name: tree for name, tree in params.items() if name != "head_VD"}
  seen = mismatches(model, left_out)
  assert len(seen) == 2 and all("names of tensors" in line for line in seen)


def test_nan_under_the_mask_changes_nothing(tmp_path, capsys):
  name = "fkl_p07_holes_empty_row.npz"
  under = np.load(GOLDEN / name)["response_mask"] == 0
  nan = {k: put(under, lambda x: x * np.nan) for k in ("log_prob", "old_log_prob", "advantages")}
  change(select(tmp_path, name), name, **nan)
  assert golden_check.main([str(tmp_path)]) == 0, capsys.readouterr().out


def test_damage_is_named_and_other_cases_still_run(tmp_path, capsys):
  files = ("agg_p01_ragged.npz", "agg_p03_holes_empty_row.npz")
  select(tmp_path, *files)
  (tmp_path / files[0]).write_bytes(b"PK\x03\x04 cut off")
  assert golden_check.main([str(tmp_path)]) == 1
  said = capsys.readouterr().out
  assert (
    f"{files[0]} could not be checked" in said and "loss seq-mean-token-mean: reference NaN" in said
  )


def test_without_an_index_what_needs_a_configuration_is_skipped(tmp_path, capsys):
  select(tmp_path, "agg_p01_ragged.npz", "fkl_p01_released_small.npz", index=False)
  assert golden_check.main([str(tmp_path)]) == 0
  assert "kind future_kl needs its configuration" in capsys.readouterr().out


def test_nothing_run_is_a_failure_and_wrong_usage_another(tmp_path, capsys):
  assert golden_check.main([str(tmp_path)]) == 1
  assert "nothing was run" in capsys.readouterr().out
  for arguments in ([str(tmp_path / "absent")], [str(tmp_path), "--kind", "ppo"], []):
    with pytest.raises(SystemExit) as stop:
      golden_check.main(arguments)
    assert stop.value.code == 2
