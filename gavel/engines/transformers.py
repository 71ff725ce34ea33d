"""transformers: slow and plain, the reference that the other engines are checked against."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gavel.engines import EngineConfig
from gavel.errors import CapabilityError, EngineError, InputError
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
from gavel.stops import ends_of, stopping
from gavel.tokenizer import HfTokenizer
from gavel.weights import check_whole, weights_version

BATCH = 16


def open(config: EngineConfig) -> Engine:
    """Loads the model. Raises InputError for one that cannot be loaded."""
    return TransformersEngine(config)


class TransformersEngine:
    """Implements `gavel.protocols.Engine` by plain forward passes, one sequence or batch at a time."""

    name = "transformers"

    def __init__(self, config: EngineConfig) -> None:
        import torch

        self._torch = torch
        self.model = config.model
        self._config = config
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = HfTokenizer.load(
            config.tokenizer_path,
            trust_remote_code=config.trust_remote_code,
            template_args=config.template_args,
        )
        self._is_reward = False
        self._hf = self._load(config.model)
        self.weights = weights_version(config.model, config.adapter)
        self.dtype = config.arithmetic(str(self._hf.dtype).removeprefix("torch."))
        limit = getattr(self._hf.config.get_text_config(), "max_position_embeddings", 4096)
        self.context = min(config.context or limit, limit)
        self._ends = config.ends()
        generation = getattr(self._hf, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        eos_ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
        self._eos_ids = {self._tokenizer.eos_id, *eos_ids, *self._ends.token_ids}
        can_sample = {Capability.SAMPLE, Capability.LOGPROBS, Capability.SCORE}
        self.capabilities = frozenset(
            {Capability.TOKENS, Capability.LOAD_WEIGHTS}
            | ({Capability.REWARD} if self._is_reward else can_sample)
        )

    @property
    def tokenizer(self) -> HfTokenizer:
        return self._tokenizer

    def sample(self, requests: Iterable[SampleRequest]) -> Iterator[Sampled | Refused]:
        """Samples token by token with a key-value cache, each request from its own generator."""
        self._check(Capability.SAMPLE)
        for request in stopping(requests, self._ends.strings):
            if request.choice or request.json_schema is not None:
                raise CapabilityError("cannot constrain its replies", where="--engine transformers")
            if len(request.prompt) >= self.context:
                yield Refused(key=request.key, reason=f"{len(request.prompt)} tokens, context {self.context}")
                continue
            yield self._sample(request)

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored | Refused]:
        """Right-padded batches; padding changes nothing under a causal mask."""
        self._check(Capability.SCORE)
        for batch in self._batches(requests):
            if isinstance(batch, Refused):
                yield batch
                continue
            logits = self._logits([r.token_ids for r in batch])
            for row, request in enumerate(batch):
                targets = self._torch.tensor(request.token_ids[request.start :], device=self._device)
                span = logits[row, request.start - 1 : len(request.token_ids) - 1].float()
                logprobs = span.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
                yield Scored(key=request.key, logprobs=logprobs.tolist())

    def reward(self, requests: Iterable[RewardRequest]) -> Iterator[Rewarded | Refused]:
        """One sequence at a time, so that no padding is pooled."""
        self._check(Capability.REWARD)
        for request in requests:
            if len(request.token_ids) > self.context:
                yield Refused(
                    key=request.key, reason=f"{len(request.token_ids)} tokens, context {self.context}"
                )
                continue
            ids = self._torch.tensor([request.token_ids], device=self._device)
            with self._torch.inference_mode():
                score = self._model()(input_ids=ids, attention_mask=self._torch.ones_like(ids)).logits
            yield Rewarded(key=request.key, reward=float(score.reshape(-1)[0]))

    def load_weights(self, path: str) -> None:
        """Loads the model anew from `path`."""
        if self._config.adapter is not None:
            raise CapabilityError("new weights cannot be loaded beside a LoRA adapter", where=self.model)
        weights = weights_version(path)
        self._hf = self._load(path)
        self._ends = ends_of(path)
        self.weights = weights

    def close(self) -> None:
        self._hf = None
        gc.collect()

    def _check(self, capability: Capability) -> None:
        if capability not in self.capabilities:
            raise CapabilityError(f"this model cannot {capability.value}", where=self.model)

    def _model(self) -> Any:
        if self._hf is None:
            raise EngineError("the engine is closed", where=self.model)
        return self._hf

    def _load(self, path: str) -> Any:
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

        config = self._config
        on_cpu_auto = config.dtype == "auto" and self._device == "cpu"
        settings = {
            "dtype": "float32" if on_cpu_auto else config.dtype,
            "trust_remote_code": config.trust_remote_code,
            **config.engine_args,
        }
        try:
            model_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
            names = getattr(model_config, "architectures", None) or []
            self._is_reward = any("SequenceClassification" in name for name in names)
            kind = AutoModelForSequenceClassification if self._is_reward else AutoModelForCausalLM
            model, info = kind.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            first = (str(error).strip().splitlines() or [repr(error)])[0]
            raise InputError(f"transformers cannot load it: {first}", where=path) from None
        check_whole(path, missing=info["missing_keys"], unlike=info["mismatched_keys"])
        if config.adapter is not None:
            from peft import PeftModel

            if not Path(config.adapter).is_dir():
                raise InputError("there is no such directory", where=f"--adapter {config.adapter}")
            try:
                model = PeftModel.from_pretrained(model, config.adapter)
            except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
                first = (str(error).strip().splitlines() or [repr(error)])[0]
                raise InputError(
                    f"is no LoRA adapter for this model: {first}", where=config.adapter
                ) from None
        return model.to(self._device).eval()

    def _batches(self, requests: Iterable[ScoreRequest]) -> Iterator[list[ScoreRequest] | Refused]:
        batch: list[ScoreRequest] = []
        for request in requests:
            size = len(request.token_ids)
            if size > self.context:
                yield Refused(key=request.key, reason=f"{size} tokens, context {self.context}")
                continue
            batch.append(request)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    def _logits(self, rows: Sequence[Sequence[int]]) -> Any:
        """(B, T, V)"""
        torch = self._torch
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long, device=self._device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.inference_mode():
            return self._model()(input_ids=ids, attention_mask=mask).logits

    def _sample(self, request: SampleRequest) -> Sampled:
        torch, sampling = self._torch, request.sampling
        generator = torch.Generator(device=self._device).manual_seed(request.seed)
        prompt = list(request.prompt_ids)
        ids: list[int] = []
        logprobs: list[float] = []
        top: list[dict[str, float]] = []
        finish, stop_reason, text = "length", None, ""
        cache, step = None, prompt
        for _ in range(min(sampling.max_tokens, self.context - len(prompt))):
            with torch.inference_mode():
                tokens = torch.tensor([step], device=self._device)
                out = self._model()(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache, raw = out.past_key_values, out.logits[0, -1].float()
            banned = self._eos_ids if len(ids) < sampling.min_tokens else set()
            processed = _process(torch, raw, sampling, prompt + ids, banned)
            if sampling.temperature == 0:
                token = int(processed.argmax())
            else:
                token = int(torch.multinomial(processed.softmax(-1), 1, generator=generator))
            source = raw if self._config.logprobs_mode == "raw" else processed
            all_logprobs = source.log_softmax(-1)
            ids.append(token)
            logprobs.append(float(all_logprobs[token]))
            if request.top_logprobs:
                top.append(self._alternatives(all_logprobs, request.top_logprobs, token))
            step = [token]
            if token in self._eos_ids:
                finish = "stop"
                break
            text = self._tokenizer.decode(ids) if sampling.stop else text
            hit = min((s for s in sampling.stop if s in text), key=text.find, default=None)
            if hit is not None:
                finish, stop_reason, text = "stop", hit, text[: text.find(hit)]
                break
        return Sampled(
            key=request.key,
            text=text if stop_reason else self._tokenizer.decode(ids),
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=finish,
            stop_reason=stop_reason,
            top_logprobs=top,
            usage={"prompt_tokens": len(prompt), "completion_tokens": len(ids)},
        )

    def _alternatives(self, logprobs: Any, count: int, sampled: int) -> dict[str, float]:
        """The likeliest tokens and the one sampled; of tokens with one text the likeliest counts."""
        found = {self._tokenizer.decode([sampled]): float(logprobs[sampled])}
        values, tokens = logprobs.topk(count)
        for token, value in zip(tokens.tolist(), values.tolist(), strict=True):
            text = self._tokenizer.decode([token])
            found[text] = max(value, found.get(text, value))
        return found


def _process(torch: Any, raw: Any, sampling: Any, seen: list[int], banned: set[int]) -> Any:
    """Logits of the distribution that is sampled from: penalty, temperature, min_p, top_k, top_p."""
    logits = raw.clone()
    if sampling.repetition_penalty != 1.0:
        used = torch.tensor(sorted(set(seen)), device=logits.device)
        values = logits[used]
        penalty = sampling.repetition_penalty
        logits[used] = torch.where(values > 0, values / penalty, values * penalty)
    for token in banned:
        logits[token] = -torch.inf
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.min_p > 0:
        probs = logits.softmax(-1)
        logits[probs < sampling.min_p * probs.max()] = -torch.inf
    if sampling.top_k > 0:
        logits[logits < logits.topk(min(sampling.top_k, logits.numel())).values[-1]] = -torch.inf
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits[order[before >= sampling.top_p]] = -torch.inf
    return logits
