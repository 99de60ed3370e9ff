# The image of docs/pods.md.
#
#   docker build --tag fipo_jax .                                        CPU
#   docker build --build-arg JAX='jax[tpu]' --tag REGISTRY/fipo_jax:1 .  TPU; or jax[cuda12]
#   docker run fipo_jax python launch/run.py --config=experiments/quickstart.py
#
# BASE: any Debian with Python 3.12 or newer and pip.
ARG BASE=python:3.12-slim
FROM ${BASE}

# tini is the container's first process: it hands signals to python, and python's exit code on. As the first process
# python would be sent no signal that it does not handle yet, and would have to reap what its workers leave.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends tini \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home --uid 1000 fipo \
  && install --directory --owner=fipo --group=fipo /app

WORKDIR /app
COPY requirements.txt ./
ARG JAX=jax
RUN python -m pip install --no-cache-dir --requirement requirements.txt "${JAX}"
COPY fipo_jax fipo_jax
COPY launch launch
COPY experiments/*.py experiments/
COPY experiments/sweeps experiments/sweeps
RUN python -m compileall -q fipo_jax launch experiments

USER 1000
ENTRYPOINT ["tini", "--"]
CMD ["python", "launch/run.py", "--help"]
