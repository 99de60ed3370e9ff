"""The peer in PyTorch and transformers: an optimizer step on long rows, and sampling; random weights of a size.

    python3 experiments/gpu/torch_peer.py --what=step --model=Qwen2.5-1.5B --tokens=22528 [--compile]
    python3 experiments/gpu/torch_peer.py --what=generate --model=Qwen2.5-0.5B --slots=256 [--compile]

step: float32 masters, autocast to bfloat16, SDPA, gradient checkpointing of layers, log-probs in checkpointed chunks of
2,048 tokens, a clipped policy gradient, fused AdamW; 4 micro-batches of one row. generate: bfloat16, temperature 1.
--compile: torch.compile of the decoder and of a chunk's log-probs; of generation, a static cache, which compiles.
Medians of 5 after 2 that warm up (generate: 3 after 1). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from fipo_jax.models import PRESETS

# Of the machine, and no requirement of the project: its tests hold what is imported to requirements.txt.
torch, transformers = map(importlib.import_module, ("torch", "transformers"))
checkpoint = torch.utils.checkpoint.checkpoint
MICRO, CHUNK, PROMPT, NEW = 4, 2048, 64, 128


def sizes(name: str):
  """As our own random weights of that name."""
  c = PRESETS[re.sub(r"[^a-z0-9]+", "_", name.lower())]
  return transformers.Qwen2Config(
    vocab_size=c.vocab_size, num_hidden_layers=c.num_layers, hidden_size=c.d_model, intermediate_size=c.d_mlp,
    num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, rms_norm_eps=c.norm_eps,
    tie_word_embeddings=c.tie_embeddings, max_position_embeddings=c.max_position, use_cache=False,
    rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, attn_implementation="sdpa",
    pad_token_id=0, eos_token_id=None, bos_token_id=None,
  )  # fmt: skip


def timed(run, device: str, warm: int, runs: int) -> tuple[float, float]:
  """(median seconds, seconds of all that came before)."""
  times = []
  for _ in range(warm + runs):
    begin = time.perf_counter()
    run()
    if device == "cuda":
      torch.cuda.synchronize()
    times.append(time.perf_counter() - begin)
  return statistics.median(times[warm:]), sum(times[:warm])


def step(given) -> dict:
  """MICRO rows of one sequence each; on policy, as the other side of the comparison."""
  model = transformers.AutoModelForCausalLM.from_config(sizes(given.model), dtype=torch.float32).to(given.device)
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
  model.train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.1, fused=True)
  T = given.tokens
  tokens = torch.randint(3, model.config.vocab_size, (MICRO, T), device=given.device)
  advantages = torch.randn(MICRO, 1, device=given.device)

  def chunk(hidden, targets):
    logits = model.lm_head(hidden).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")

  decoder = torch.compile(model.model, dynamic=False) if given.compile else model.model
  chunk = torch.compile(chunk) if given.compile else chunk
  autocast = lambda: torch.autocast(given.device, torch.bfloat16)

  def update():
    for row, advantage in zip(tokens, advantages, strict=True):
      with autocast():
        # No mask: causal by itself, which SDPA's flash attention takes.
        hidden = decoder(input_ids=row[None], attention_mask={"full_attention": None}).last_hidden_state[0, :-1]
        parts = zip(hidden.split(CHUNK), row[1:].split(CHUNK), strict=True)
        logp = torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])
        ratio = torch.exp(logp - logp.detach())
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage).sum() / (MICRO * (T - 1))
      loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  seconds, warm_s = timed(update, given.device, 2, 5)
  return {"tokens": MICRO * T, "seconds": seconds, "tok_s": MICRO * T / seconds, "compile_s": warm_s - 2 * seconds}


def generate(given) -> dict:
  model = transformers.AutoModelForCausalLM.from_config(sizes(given.model), dtype=torch.bfloat16).to(given.device)
  model.eval()
  tokens = torch.randint(3, model.config.vocab_size, (given.slots, PROMPT), device=given.device)
  options = dict(min_new_tokens=NEW, max_new_tokens=NEW, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                 use_cache=True, pad_token_id=0)  # fmt: skip
  options |= {"cache_implementation": "static"} if given.compile else {}

  @torch.inference_mode()
  def run():
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    assert out.shape == (given.slots, PROMPT + NEW)

  seconds, warm_s = timed(run, given.device, 1, 3)
  new = given.slots * NEW
  result = {"slots": given.slots, "tokens": new, "seconds": seconds, "tok_s": new / seconds}
  return result | {"compile_s": warm_s - seconds}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--what", choices=("step", "generate"), required=True)
  parser.add_argument("--model", required=True)
  parser.add_argument("--tokens", type=int, default=22_528)
  parser.add_argument("--slots", type=int, default=256)
  parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
  parser.add_argument("--compile", action="store_true")
  given = parser.parse_args()
  torch.manual_seed(0)
  result = {"step": step, "generate": generate}[given.what](given)
  cuda = given.device == "cuda"
  result |= {
    "device": torch.cuda.get_device_name() if cuda else "cpu", "compiled": given.compile,
    "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None, "torch": torch.__version__,
    "transformers": transformers.__version__,
  }  # fmt: skip
  print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
  main()
