"""fipo_jax: Future-KL Influenced Policy Optimization on any JAX mesh.

Data flows one way:

    prompts -> rollout -> rewards -> advantages -> Future-KL -> loss -> update -> checkpoint -> evaluate / report
    data/      rollout/   rewards/   algorithms/                       train/                    evaluate, report

Where to look:

    loop.py          the whole algorithm on one page: start here
    types.py         the records that flow, and the letters of their axes
    config.py        every field: its value, unit and reason
    algorithms/      advantages, Future-KL, losses: the mathematics
    models/          Qwen2.5 and Qwen3 in Flax NNX, attention, log-probs, Hugging Face files
    rollout/         jitted sampling
    train/           packing, optimizer, the jitted step, checkpoints
    data/, rewards/  prompts in, scores out
    sharding.py      meshes and the one table of logical axes
    processes.py     many hosts that are one run
    evaluation/      named sets, figures with intervals, comparisons
    sweeps/          many runs that are compared
    pods/            TPUs that are not there: programs compiled for them, what an iteration would cost

This file imports nothing.
"""
