"""How far Future-KL looks ahead, and what f may do with it, on the quickstart: a config that says how it is swept.

    python launch/sweep.py --config=experiments/quickstart_half_life.py --seeds=3 --jobs=2

get_hyper(hyper) is read by launch/sweep.py alone; launch/run.py trains with the config as it is. Lists of arms are made
by hyper.sweep and hyper.fixed, and put together by hyper.product, zipit and chainit. We have not run this: 15 runs of
the quickstart's size.
"""

from experiments import quickstart


def get_config():
  c = quickstart.get_config()
  c.workdir = "runs/quickstart_half_life"
  return c


def get_hyper(hyper):
  half_lives = hyper.sweep("config.algorithm.half_life_tokens", [8.0, 32.0])
  ranges = hyper.sweep("config.algorithm.weight_clip", [(1.0, 1.2), (0.8, 1.2)])
  dapo = hyper.fixed("config.algorithm.name", "dapo")
  return hyper.chainit([dapo, hyper.product([half_lives, ranges])])
