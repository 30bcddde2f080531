# The few commands a person types. `make` alone lists them.

# 3.11 is the Python of the pins' main set; any from 3.10 on works.
PYTHON ?= $(shell command -v python3.11 || command -v python3)

VENV := .venv
TRITON_VENV := .venv-triton
# Packages whose interface the tests look at, and never run: TensorRT's bindings of two versions, torch-tensorrt.
TENSORRT_API := .venv-tensorrt
# Two other versions of Pillow: the tests compare the pixels that they make.
PILLOW := .venv-pillow
BIN := $(VENV)/bin
PIP_OPTIONS := --quiet --only-binary :all: --disable-pip-version-check
# A stamp is newer than the pins it was made from, so a second `make` installs nothing.
ENV := $(VENV)/.ready
TRITON_ENV := $(TRITON_VENV)/.ready
TENSORRT_ENV := $(VENV)/.ready-tensorrt
DOCS_ENV := $(VENV)/.ready-docs
PILLOW_ENV := $(PILLOW)/.ready
# The nginx on PATH, else Debian's, unpacked here.
NGINX := .nginx
NGINX_ENV := $(NGINX)/.ready

JS_ENV := sdk-js/node_modules/.ready
JS_BUILD := sdk-js/dist/index.js
# The browser that its tests run in.
CHROMIUM := .chromium
CHROMIUM_ENV := $(CHROMIUM)/.ready
# Another one, where this system has it.
FIREFOX := .firefox
FIREFOX_ENV := $(FIREFOX)/.ready
# What its example for React Native is type-checked against.
REACT_NATIVE := sdk-js/examples/react-native/node_modules
REACT_NATIVE_ENV := $(REACT_NATIVE)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test thorough soak lint format docs env triton tensorrt pillow nginx js chromium firefox react-native web clean

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: env triton  ## classify real test images on three local tritonservers
	$(BIN)/python examples/demo.py

web: env triton nginx js  ## the same in a page: choose a picture, see the answer and what each server received
	$(BIN)/python examples/web.py

# Four processes, each with one thread: much of what they do is waiting, for servers that they start and for deadlines.
test: env triton tensorrt pillow nginx js chromium firefox react-native lint docs  ## environments, lint, types, import contract, documentation, every test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --cov

thorough: env triton pillow  ## much more of what draws at random: faults on the wire, mutations, images (an hour)
	PRIVDFS_THOROUGH=1 $(BIN)/pytest tests/e2e/test_wire.py tests/sdk/test_signature.py tests/sdk/test_images.py tests/sdk/test_pillow.py

soak: env triton  ## predictions while servers are killed, cut off, slow, full, or lie (two to three hours)
	$(BIN)/python bench/soak.py

lint: env  ## style, format, types, import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: env  ## put the code into its format and fix what can be fixed safely
	$(BIN)/ruff check --fix-only --exit-zero
	$(BIN)/ruff format

# MkDocs's theme advertises its successor at every build, unless it is told not to. Not --quiet: a warning that is not
# shown does not fail a strict build.
docs: $(DOCS_ENV)  ## the documentation site (build/site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean
	@echo "build/site/index.html; with its search: python3 -m http.server --bind 127.0.0.1 --directory build/site"

env: $(ENV)  ## the environment of all three packages (.venv)

tensorrt: $(TENSORRT_ENV)  ## what the tests check engines with, without a GPU (100 MB)

pillow: $(PILLOW_ENV)  ## the oldest supported Pillow and one before 13, which resizes otherwise (35 MB)

nginx: $(NGINX_ENV)  ## the gateway in front of local servers: that on PATH, else Debian's (.nginx, 0.5 MB)

js: $(JS_BUILD)  ## the SDK in TypeScript, built (sdk-js/dist); its tests are tests/js

chromium: $(CHROMIUM_ENV)  ## the browser of the tests, unpacked from a package of npm (.chromium, 230 MB)

firefox: $(FIREFOX_ENV)  ## another one: that on PATH, else Debian's (.firefox, 310 MB); without either its tests are skipped

react-native: $(REACT_NATIVE_ENV)  ## what the example for React Native is type-checked against (60 MB)

triton: $(TRITON_ENV)  ## the environment of the local tritonserver (.venv-triton)

$(ENV): pyproject.toml hatch_build.py constraints.txt scripts/check-python.sh $(wildcard scripts/commands/*)
	@scripts/check-python.sh "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/pip install $(PIP_OPTIONS) --constraint constraints.txt hatchling editables
	$(BIN)/pip install $(PIP_OPTIONS) --constraint constraints.txt --no-build-isolation --editable '.[training,export,dev]'
	@touch $@

$(TENSORRT_ENV): $(ENV)
	$(BIN)/pip install $(PIP_OPTIONS) --constraint constraints.txt --no-build-isolation --editable '.[tensorrt-check]'
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(TENSORRT_API)/10 tensorrt-cu12-bindings==10.16.1.11
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(TENSORRT_API)/11 tensorrt-cu12-bindings==11.4.0.106
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(TENSORRT_API)/torch torch-tensorrt==2.14.0
	@touch $@

$(DOCS_ENV): $(ENV)
	$(BIN)/pip install $(PIP_OPTIONS) --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	@touch $@

$(PILLOW_ENV): $(ENV)
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(PILLOW)/11 pillow==11.0.0
	$(BIN)/pip install $(PIP_OPTIONS) --no-deps --upgrade --target $(PILLOW)/12 pillow==12.3.0
	@touch $@

# Install scripts would download: ONNX Runtime for Node has what its tests need in the package.
$(JS_ENV): sdk-js/package.json sdk-js/package-lock.json sdk-js/.npmrc scripts/npm.sh $(ENV)
	scripts/npm.sh ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(JS_BUILD): $(JS_ENV) $(wildcard sdk-js/src/*.ts) sdk-js/tsconfig.json sdk-js/tsconfig.build.json
	rm -rf sdk-js/dist
	scripts/npm.sh run --silent build
	@touch $@

$(CHROMIUM_ENV): $(JS_ENV) scripts/get-chromium.mjs
	scripts/npm.sh exec --offline -- node ../scripts/get-chromium.mjs ../$(CHROMIUM)
	@touch $@

$(FIREFOX_ENV): scripts/get-firefox.sh scripts/debian.sh
	scripts/get-firefox.sh $(FIREFOX)
	@touch $@

$(REACT_NATIVE_ENV): $(JS_ENV) scripts/get-react-native.mjs
	scripts/npm.sh exec -- node ../scripts/get-react-native.mjs ../$(REACT_NATIVE)
	@touch $@

$(TRITON_ENV): constraints-triton.txt scripts/check-python.sh scripts/make-triton-env.sh
	@scripts/check-python.sh "$(PYTHON)"
	"$(PYTHON)" -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/pip install $(PIP_OPTIONS) --constraint constraints-triton.txt numpy onnxruntime pillow
	$(TRITON_VENV)/bin/pip install $(PIP_OPTIONS) --constraint constraints-triton.txt --no-deps nvidia-pytriton
	scripts/make-triton-env.sh $(TRITON_VENV)
	@touch $@

$(NGINX_ENV): scripts/get-nginx.sh scripts/debian.sh
	scripts/get-nginx.sh $(NGINX)
	@touch $@

clean:  ## remove environments, caches and everything built
	rm -rf $(VENV) $(TRITON_VENV) $(TENSORRT_API) $(PILLOW) $(NGINX) $(CHROMIUM) $(FIREFOX) build dist $(REACT_NATIVE) sdk-js/node_modules sdk-js/dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
