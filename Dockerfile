# Container image of the service. CPU by default; for NVIDIA GPUs: --build-arg VARIANT=cuda.
# Layers are ordered from the least to the most frequently changed: after a change of code only the last one is rebuilt.

# `make pin-images` writes its digest.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG VARIANT=cpu

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cpu

# Triton compiles a launcher for each kernel at run time and needs a C compiler; the CPU variant needs none.
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

# Every package is a wheel, so nothing is compiled here and this stage becomes the final image without a copy.
# Packages are installed by hash, in the CUDA variant torch too. torch without CUDA comes from TORCH_INDEX alone, by its
# version: what it needs is there already, so that index provides nothing else.
# The same layer deletes files that serving never opens: the packages' tests and torch's test programs, and in the CPU
# variant torch's C++ headers, which are useless without a compiler. torch fails to start without torch_shm_manager.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS packages
ARG VARIANT
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv --without-pip /opt/venv
WORKDIR /opt/requirements
COPY requirements.txt requirements/lock/serve.txt requirements/lock/tracing.txt requirements/lock/torch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    add() { python -m pip --python /opt/venv/bin/python install --no-deps --only-binary :all: "$@"; } \
 && add --require-hashes -r serve.txt -r tracing.txt \
 && if [ "${VARIANT}" = cpu ]; \
    then add --index-url "${TORCH_INDEX}" "$(grep '^torch==' requirements.txt)"; \
    else add --require-hashes -r torch.txt; fi \
 && find /opt/venv/lib -type d '(' -name tests -o -path '*/torch/test' ')' -prune -exec rm -rf {} + \
 && find /opt/venv/lib -path '*/torch/bin/*' '!' -name torch_shm_manager -delete \
 && if [ "${VARIANT}" = cpu ]; then find /opt/venv/lib -type d -path '*/torch/include' -prune -exec rm -rf {} +; fi

# CycloneDX bill of materials of the installed packages. `--target sbom` builds this stage alone.
FROM packages AS sbom
COPY requirements/lock/audit.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/sbom \
 && /opt/sbom/bin/python -m pip install --require-hashes --no-deps --only-binary :all: -r audit.txt \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-file /opt/sbom.json /opt/venv/bin/python

# The root file system is read-only at run time, so the bytecode is written here.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS code
WORKDIR /app
COPY LICENSE ./
COPY service ./service
RUN python -m compileall -q service

FROM packages AS final
# /cache holds what a restart can reuse: models downloaded from the hub, converted weights, kernels compiled for a GPU.
# /data holds what clients store, where ERLANGSHEN_STORAGE__DATA_DIR names it.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin erlangshen \
 && install --directory --owner=10001 --group=10001 /cache /data
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
