# The service as an image. CPU by default; for NVIDIA GPUs: --build-arg VARIANT=cuda.
# Layers go from what changes seldom to what changes daily, so a change of code rebuilds in seconds.

ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG VARIANT=cpu

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cpu

# Triton compiles the launcher of each of its kernels where it runs, hence a C compiler in this variant, and only here.
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

# All packages come as wheels, so nothing has to be left behind, and no gigabyte copied. torch as pip finds it by itself
# carries CUDA; its build without is in an index of its own.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS packages
ARG VARIANT
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt requirements/tracing.txt /opt/requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "${VARIANT}" = cpu ]; then export PIP_EXTRA_INDEX_URL="${TORCH_INDEX}"; fi \
 && python -m pip --python /opt/venv/bin/python install \
        -r /opt/requirements/requirements.txt -r /opt/requirements/tracing.txt

# What is inside, as CycloneDX. `--target sbom` builds this stage alone.
FROM packages AS sbom
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sbom \
 && /opt/sbom/bin/python -m pip install cyclonedx-bom==7.5.0 \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-file /opt/sbom.json /opt/venv/bin/python

# The root is meant to be read-only, so what Python would write beside the code is written here.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS code
WORKDIR /app
COPY LICENSE ./
COPY service ./service
RUN python -m compileall -q service

FROM packages AS final
# /cache is for what may be kept over a restart: downloads of the hub, converted weights, kernels compiled for a GPU.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin erlangshen \
 && install --directory --owner=10001 --group=10001 /cache
COPY --from=sbom /opt/sbom.json /usr/share/doc/erlangshen-service/sbom.cdx.json
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    ERLANGSHEN_SERVER__HOST=0.0.0.0 \
    ERLANGSHEN_SERVER__PORT=8000 \
    ERLANGSHEN_SECURITY__ALLOW_ANONYMOUS=true
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-m", "service", "health"]
ENTRYPOINT ["python", "-m", "service"]
CMD ["serve"]
COPY --from=code /app /app
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="erlangshen-service" \
      org.opencontainers.image.description="Inference server for Chinese MegatronBert and BERT encoder models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
