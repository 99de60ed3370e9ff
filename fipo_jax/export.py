"""A Hugging Face directory of any checkpoint that is kept, without devices, and without a model in memory."""

from __future__ import annotations

from fipo_jax import console, parts
from fipo_jax.models import hf
from fipo_jax.train import checkpoint, stored_arrays

ROOM_BYTES = 2e9  # for layers that are read ahead, where pieces of the checkpoint hold several


def export(cfg, out: str, *, step: int | str | None = None, dtype: str | None = None, room_bytes=ROOM_BYTES) -> int:
  """Writes the model of a run's checkpoint to `out`, as `hf.save` would; returns its step.

  One tensor is in memory at a time, beside what was read ahead.

  Args: cfg: of the run. step: a number, "best", or None for the newest. dtype: of the files, if not that of the model
    that the run began with.
  Raises: ValueError or OSError, in one line, for a step that is not there or cannot be read, or a folder in the way.
  """
  folder = checkpoint.folder_of(cfg.workdir, cfg.checkpoint.folder)
  found = checkpoint.choose(folder, step)
  cfg = parts.with_model(cfg)
  tokenizer, model = parts.open_model(cfg)
  policy = model.policy()
  params = stored_arrays.open_all(
    folder / str(found) / "state", policy.abstract(), room_bytes=room_bytes, order=lambda n: sorted(range(n), key=str)
  )
  passes = max(x.passes for _, x in stored_arrays.leaves(params))
  console.say(f"checkpoint {folder / str(found)} -> {out}")
  if passes > 1:
    console.say(f"its pieces hold several layers each (as saved by earlier versions): it is read {passes} times")
  with console.phase("exporting"):
    hf.save(out, params, policy.config, template_dir=cfg.model.path or None, dtype=dtype)
    if not cfg.model.path:
      tokenizer.save(out)
  return found
