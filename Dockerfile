# Container image of the service. CPU by default; for NVIDIA GPUs: --build-arg VARIANT=cuda.
# Behind a mirror or a proxy: PYTHON_IMAGE, PIP_INDEX_URL, TORCH_BUILD, TORCH_INDEX, TORCH_LINKS, APT_MIRROR, and the secrets
# pip_conf and ca (docs/deployment.md).
# Layers are ordered from the least to the most frequently changed: after a change of code only the last one is rebuilt.

# `make pin-images` writes its digest.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG VARIANT=cpu

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cpu

# Triton compiles a launcher for each kernel at run time and needs a C compiler; the CPU variant needs none.
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS base-cuda
# The scheme and the host of a mirror of the distribution's packages, such as http://mirror.example.com.
ARG APT_MIRROR=
# The certificate authority serves to check the mirror, and is not kept.
# hadolint ignore=DL3008
RUN --mount=type=secret,id=ca \
    if [ -n "${APT_MIRROR}" ]; then \
      find /etc/apt '(' -name '*.sources' -o -name sources.list ')' \
        -exec sed -Ei "s|https?://[^/ ]+|${APT_MIRROR%/}|" {} +; fi \
 && if [ -f /run/secrets/ca ]; then echo 'Acquire::https::CaInfo "/run/secrets/ca";' > /etc/apt/apt.conf.d/99ca; fi \
 && apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* /etc/apt/apt.conf.d/99ca

# Every package is a wheel, so nothing is compiled here and this stage becomes the final image without a copy.
# Packages are installed by hash, in the CUDA variant torch too. Any other build of torch comes from TORCH_INDEX alone, or
# from the flat page TORCH_LINKS, by its version with its build: the image build fails where that has no such torch.
# pip reads PIP_INDEX_URL by itself, and of the secret pip_conf what must not be in the image's history, such as a password.
# The same layer deletes files that serving never opens: the packages' tests and torch's test programs, and in the CPU
# variant torch's C++ headers, which are useless without a compiler. torch fails to start without torch_shm_manager.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS packages
ARG VARIANT
# cpu, cu126, cu128, cu130, ...; empty: cpu in the CPU variant, and in the CUDA variant the build that is locked by hash.
ARG TORCH_BUILD=
ARG TORCH_INDEX=
ARG TORCH_LINKS=
ARG PIP_INDEX_URL
RUN python -m venv --without-pip /opt/venv
WORKDIR /opt/requirements
COPY requirements.txt requirements/lock/serve.txt requirements/lock/tracing.txt requirements/lock/torch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    if [ -f /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi \
 && if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && add() { python -m pip --python /opt/venv/bin/python install --only-binary :all: "$@"; } \
 && add --no-deps --require-hashes -r serve.txt -r tracing.txt \
 && build="${TORCH_BUILD:-$([ "${VARIANT}" != cpu ] || echo cpu)}" \
 && torch="$(grep '^torch==' requirements.txt)+${build}" \
 && index="${TORCH_INDEX:-https://download.pytorch.org/whl/${build}}" \
 && if [ "${build}" = cpu ]; then set -- --no-deps; else set --; fi \
 && if [ -z "${build}" ]; then add --no-deps --require-hashes -r torch.txt; \
    elif [ -n "${TORCH_LINKS}" ]; then add "$@" --find-links "${TORCH_LINKS}" "${torch}"; \
    else add "$@" --index-url "${index}" "${torch}"; fi \
 && find /opt/venv/lib -type d '(' -name tests -o -path '*/torch/test' ')' -prune -exec rm -rf {} + \
 && find /opt/venv/lib -path '*/torch/bin/*' '!' -name torch_shm_manager -delete \
 && if [ "${VARIANT}" = cpu ]; then find /opt/venv/lib -type d -path '*/torch/include' -prune -exec rm -rf {} +; fi

# CycloneDX bill of materials of the installed packages. `--target sbom` builds this stage alone.
FROM packages AS sbom
ARG PIP_INDEX_URL
COPY requirements/lock/audit.txt ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    if [ -f /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi \
 && if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi \
 && python -m venv /opt/sbom \
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
