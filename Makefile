# `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
# The interpreter that creates $(VENV): the first of these that is 3.11 or newer.
PYTHON ?= $(shell for candidate in python3.11 python3; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$candidate && break; done)
# Which build of torch: cpu, cu126, cu128, ...; empty for that of pip's index, which on Linux needs a GPU with a new driver.
# Without an NVIDIA driver Linux gets the CPU build; macOS has one build, for both.
NVIDIA := $(wildcard /proc/driver/nvidia/version /usr/lib/wsl/lib/libcuda.so.1)
TORCH_BUILD ?= $(if $(filter Linux,$(shell uname -s)),$(if $(NVIDIA),,cpu))
# Where a named build comes from, and it alone; a mirror's address takes its place.
TORCH_INDEX ?= $(if $(TORCH_BUILD),https://download.pytorch.org/whl/$(TORCH_BUILD))
# Passed to the command that a target runs: make serve ARGS="--port 9000"
ARGS ?=
# Covered by `make audit` and `make sbom`: the service with tracing and training, without the plots of bench.
SHIPPED := requirements.txt requirements/tracing.txt requirements/train.txt requirements/tuning.txt requirements/export.txt requirements/ray.txt
# Half of the tests wait for processes: two of them at a time take little more than half the time. ARGS="-n 0" runs one.
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile
URL ?= http://127.0.0.1:8000
DATA ?=
OUT ?= runs/mini
# Images: ENGINE is docker or podman, VARIANT is cpu or cuda.
ENGINE ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman)
VARIANT ?= cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Sources of a build that are named on the command line or in the environment (docs/deployment.md); PIP_CONF and CA are files.
BUILD_ARGS := PYTHON_IMAGE PIP_INDEX_URL TORCH_BUILD TORCH_INDEX TORCH_LINKS APT_MIRROR
SOURCES = $(foreach name,$(BUILD_ARGS),$(if $(filter command environment,$(origin $(name))),--build-arg $(name)="$($(name))")) \
	$(if $(findstring @,$(PIP_INDEX_URL)),$(error PIP_INDEX_URL has a password, which the history of the image would show: write it into a pip.conf, PIP_CONF=FILE)) \
	$(if $(PIP_CONF),--secret id=pip_conf$(comma)src="$(PIP_CONF)") $(if $(CA),--secret id=ca$(comma)src="$(CA)")
comma := ,
# `make release` builds these.
VARIANTS ?= cpu cuda
# Of this commit: the version on its tag, else with the commit. `make image` tags an image with it, too.
EXACT = $(shell $(PYTHON) scripts/release.py version)
BUNDLE := dist/erlangshen-service-$(VERSION)
# Models of the bundle besides those that ship, as in --model.
MODELS ?=
IMAGE ?= erlangshen-service:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda)

.PHONY: help serve test test-all lint format unit mini claims gpu bench bench-peers bench-runtimes image image-run bundle release pin-images check-deploy dashboards check-monitoring docs audit sbom lock clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-17s %s\n", $$1, $$2 }'
	@echo 'ARGS="..." is passed to the command: make serve ARGS="--port 9000 --model NAME=SOURCE"'

serve: $(VENV)/serve.stamp ## install the packages for serving and start the server on http://127.0.0.1:8000
	exec $(BIN)/python -m service serve $(ARGS)

test: lint unit ## install all packages, lint, and run the tests, as CI does

test-all: lint ## the same with the slow tests: training runs, benchmarks in miniature, the playground in chromium where installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

lint: $(VENV)/dev.stamp ## run ruff, mypy --strict and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp ## format the code and apply the fixes of ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: $(VENV)/dev.stamp ## run the tests without linting: make unit ARGS="-k similarity"
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" $(ARGS)

mini: $(VENV)/train.stamp ## train the model that ships: make mini DATA=FOLDER OUT=runs/mini
	@test -n "$(DATA)" || { echo 'Set DATA to the folder of the data sets: make mini DATA=FOLDER' >&2; exit 2; }
	$(BIN)/python -m service finetune --data "$(DATA)" $(ARGS) \
		--recipe service/tools/training/recipes/mini.toml --output "$(OUT)/first"
	$(BIN)/python -m service finetune --data "$(DATA)" $(ARGS) \
		--recipe service/tools/training/recipes/mini-polish.toml --model "$(OUT)/first" --output "$(OUT)"

claims: $(VENV)/train.stamp ## reproduce the model cards on a GPU; elsewhere print the commands: make claims DATA=FOLDER
	$(BIN)/python -m benchmarks.claims $(if $(DATA),--data "$(DATA)") $(ARGS)

# Installs nothing, for a machine that is rented for minutes. The part that starts last may take two of them.
gpu: ## measure a GPU in ten minutes, with the torch that is there; one file for each part: make gpu OUT=DIR
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu --folder "$(if $(filter file,$(origin OUT)),runs/gpu,$(OUT))" --limit-s 460 $(ARGS)

bench: $(VENV)/bench.stamp ## load test a running server: make bench URL=... DATA=texts ARGS="--concurrency 1,8,32 --plot p.png"
	$(BIN)/python -m service bench --url "$(URL)" $(if $(DATA),--texts "$(DATA)") $(ARGS)

bench-peers: $(VENV)/train.stamp $(VENV)/bench.stamp $(VENV)/export.stamp ## install other servers in .peers/ and compare this one with them: make bench-peers ARGS="--json FILE"
	$(BIN)/python -m benchmarks.peers $(ARGS)

bench-runtimes: $(VENV)/train.stamp $(VENV)/bench.stamp $(VENV)/export.stamp ## compare the engine with ONNX Runtime and OpenVINO: make bench-runtimes ARGS="--json FILE"
	$(BIN)/python -m benchmarks.engine runtimes $(ARGS)

image: ## build the container image: make image VARIANT=cuda
	$(ENGINE) build $(if $(filter %podman,$(ENGINE)),--format docker) --build-arg VARIANT=$(VARIANT) $(SOURCES) --build-arg VERSION=$(EXACT) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) --tag $(IMAGE) $(if $(filter file,$(origin IMAGE)),--tag erlangshen-service:$(EXACT)$(if $(filter cuda,$(VARIANT)),-cuda)) $(ARGS) .

image-run: ## run the image, hardened, on http://127.0.0.1:8000: make image-run ARGS="--model NAME=SOURCE"
	$(ENGINE) run --rm --publish 127.0.0.1:8000:8000 --volume erlangshen-cache:/cache --read-only --tmpfs /tmp \
		--cap-drop ALL --security-opt no-new-privileges $(if $(filter cuda,$(VARIANT)),--gpus all) $(IMAGE) $(ARGS)

bundle: $(if $(MODELS),$(VENV)/serve.stamp) | $(BIN)/pip ## write dist/*.tar for a machine without a network: make bundle MODELS="NAME=ORG/MODEL ms://ORG/MODEL"
	rm -rf $(BUNDLE) $(BUNDLE).tar && mkdir -p $(BUNDLE)/wheels $(BUNDLE)/models
	git archive --prefix app/ HEAD | tar -x -C $(BUNDLE)
	$(BIN)/$(DOWNLOAD) $(BY_HASH) -r requirements/lock/serve.txt -r requirements/lock/tracing.txt
	$(BIN)/$(DOWNLOAD) --only-binary :all: $(if $(filter cpu,$(TORCH_BUILD)),--no-deps) $(TORCH)
	$(if $(MODELS),$(BIN)/python -m service fetch --cache-dir $(BUNDLE)/models $(addprefix --model ,$(MODELS)))
	$(if $(MODELS),printf '%s\n' $(MODELS),true) > $(BUNDLE)/model-specs
	$(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' > $(BUNDLE)/python-version
	if $(ENGINE) image inspect $(IMAGE) >/dev/null 2>&1; then $(ENGINE) save --output $(BUNDLE)/image.tar $(IMAGE); \
		else echo 'without an image: `make image` first, where there is docker or podman'; fi
	install -m 755 scripts/install_bundle.sh $(BUNDLE)/install.sh
	cd $(BUNDLE) && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS
	tar -C $(dir $(BUNDLE)) -cf $(BUNDLE).tar $(notdir $(BUNDLE))
	@echo 'on the other machine: tar -xf $(notdir $(BUNDLE)).tar && $(notdir $(BUNDLE))/install.sh FOLDER'

# The CPU image for arm64, too, where the builder can run its programs; an image for CUDA is x86-64 only.
ARM64 := $(wildcard /proc/sys/fs/binfmt_misc/qemu-aarch64)
RELEASED := erlangshen-service:$(VERSION) $(if $(filter cuda,$(VARIANTS)),erlangshen-service:$(VERSION)-cuda) $(if $(ARM64),erlangshen-service:$(VERSION)-arm64)
release: ## from the tag of a version: build the images, write dist/release with SBOM, provenance and checksums; VARIANTS="cpu cuda"
	$(PYTHON) scripts/release.py check
	started=$$(date --utc --iso-8601=seconds); \
	for variant in $(VARIANTS); do $(MAKE) image VARIANT=$$variant; done; \
	$(if $(ARM64),$(MAKE) image IMAGE=erlangshen-service:$(VERSION)-arm64 ARGS="--platform linux/arm64 $(ARGS)";,echo 'no arm64 image: this machine cannot run arm64 programs (qemu-user-static and binfmt-support); build it on an arm64 machine' >&2;) \
	$(PYTHON) scripts/release.py pack --engine $(ENGINE) --folder dist/release --started "$$started" \
		$(foreach name,$(BUILD_ARGS),$(if $(filter command environment,$(origin $(name))),--argument $(name)="$($(name))")) $(RELEASED)

pin-images: ## write digests into all image references (needs skopeo); ARGS=--check lists those without
	$(PYTHON) scripts/pin_images.py $(ARGS)

check-deploy: $(VENV)/dev.stamp .deploy/stamp ## check the Dockerfile, Compose and Kubernetes files; with IMAGE=..., a built image too
	PATH="$(CURDIR)/.deploy/bin:$$PATH" $(if $(filter command,$(origin IMAGE)),ENGINE=$(ENGINE) ERLANGSHEN_IMAGE=$(IMAGE)) \
		$(BIN)/python -m pytest tests/deploy $(ARGS)

dashboards: $(VENV)/monitoring.stamp ## write the dashboards and alert rules from monitoring/
	$(BIN)/python -m monitoring

check-monitoring: $(VENV)/dev.stamp ## test dashboards and alerts with a real Prometheus and Alertmanager (7 minutes)
	$(BIN)/python -m pytest tests/monitoring
	$(BIN)/python -m benchmarks.dashboards $(ARGS)

# --strict: a broken link or a page that is not in mkdocs.yml fails.
docs: .docs/stamp ## build the documentation site in dist/site, for reading offline; ARGS="--site-dir DIR" elsewhere
	NO_MKDOCS_2_WARNING=1 .docs/bin/python -m mkdocs build --strict $(ARGS)

audit: .audit/stamp ## check the pinned packages for known vulnerabilities; fails when one cannot be checked
	.audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off \
		$(addprefix -r ,$(SHIPPED)) $(ARGS)

sbom: .audit/stamp ## write dist/sbom.cdx.json, a CycloneDX bill of materials of the pinned packages
	mkdir -p dist
	cat $(SHIPPED) | .audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application \
		--output-reproducible --output-file dist/sbom.cdx.json -

lock: .uv/stamp ## write requirements/lock/ again: run it after every change of a pin
	$(COMPILE) --no-deps --no-emit-package torch --output-file requirements/lock/serve.txt requirements.txt
	for name in train tuning export ray tracing bench docs monitoring audit uv; do \
		$(COMPILE) --no-deps --output-file requirements/lock/$$name.txt requirements/$$name.txt; done
	sed '/^-r /d' requirements/dev.txt | $(COMPILE) --no-deps --output-file requirements/lock/dev.txt -
	$(COMPILE) --output-file requirements/lock/deploy.txt requirements/deploy.txt
	grep '^torch==' requirements.txt | $(COMPILE) --constraints requirements.txt --output-file requirements/lock/torch.txt -

clean: ## remove caches and build output; keeps the environments (.venv .deploy .audit .peers .clients .docs .uv)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	find service tests benchmarks monitoring -type d -name __pycache__ -prune -exec rm -rf {} +

# The hashes of all files of a version, for every platform. `--no-deps` where the input lists all dependencies itself.
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' .uv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 \
	--generate-hashes --no-annotate

# Nothing is installed that no lock file lists, and nothing is built: the build tools of a source package have no hashes.
INSTALL = python -m pip install --disable-pip-version-check
DOWNLOAD = python -m pip download --quiet --disable-pip-version-check --dest $(BUNDLE)/wheels
# Without a name for the build, torch's version alone would take the CPU build on a machine with a GPU.
OTHER_BUILD = $(if $(and $(NVIDIA),$(filter %/cpu %/cpu/,$(TORCH_INDEX))),$(if $(TORCH_BUILD),,$(error \
	TORCH_INDEX has torch for CPUs, and this machine has an NVIDIA driver: unset TORCH_INDEX, or name the build: TORCH_BUILD=cpu)))
TORCH = $(OTHER_BUILD)$(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' requirements.txt)$(addprefix +,$(TORCH_BUILD))"
NO_TORCH = torch was not installed from $(or $(TORCH_INDEX),the index of pip). From a mirror that has this build: \
	make $(or $(firstword $(MAKECMDGOALS)),serve) TORCH_INDEX=https://MIRROR/whl/$(or $(TORCH_BUILD),cu130) (docs/deployment.md, docs/zh/deployment.md)
BY_HASH := --require-hashes --no-deps --only-binary :all:

# pip runs again only when a lock file is newer than its stamp.
# torch comes last, from one index, so that only torch and the CUDA libraries of its build are not in the lock file.
$(VENV)/serve.stamp: requirements/lock/serve.txt requirements.txt | $(BIN)/pip
	$(BIN)/$(INSTALL) $(BY_HASH) -r $<
	$(BIN)/$(INSTALL) --only-binary :all: $(TORCH) || { echo '$(NO_TORCH)' >&2; exit 2; }
	touch $@

$(VENV)/train.stamp $(VENV)/bench.stamp $(VENV)/export.stamp $(VENV)/monitoring.stamp: $(VENV)/%.stamp: requirements/lock/%.txt $(VENV)/serve.stamp
	$(BIN)/$(INSTALL) $(BY_HASH) -r $<
	touch $@

DEV_LOCKS := $(patsubst %,requirements/lock/%.txt,train tracing bench monitoring dev)
$(VENV)/dev.stamp: $(DEV_LOCKS) $(VENV)/serve.stamp
	$(BIN)/$(INSTALL) $(BY_HASH) $(addprefix -r ,$(DEV_LOCKS))
	touch $@

# Each in its own environment: checkov needs other versions of packages that the service and the tests use.
.deploy/stamp .audit/stamp .uv/stamp: .%/stamp: requirements/lock/%.txt
	$(PYTHON) -m venv .$*
	.$*/bin/$(INSTALL) $(BY_HASH) -r $<
	touch $@

# jieba is published as source alone. What builds it is in the lock file, too, and is installed before it.
.docs/stamp: requirements/lock/docs.txt
	$(PYTHON) -m venv .docs
	sed '/^jieba==/,/[^\\]$$/d' $< | .docs/bin/$(INSTALL) $(BY_HASH) -r /dev/stdin
	.docs/bin/$(INSTALL) $(BY_HASH) --no-binary jieba --no-build-isolation -r $<
	touch $@

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo 'On Debian and Ubuntu: apt install python3-venv' >&2; exit 2; }
