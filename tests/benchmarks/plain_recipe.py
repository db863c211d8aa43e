"""What one would write without raymsa: transformers, peft and bitsandbytes, put together as their pages show.

The peer of `raymsa bench --against plain`, with the same mathematics: NF4 with double quantisation,
`prepare_model_for_kbit_training`, the full `forward` with `output_hidden_states`, padded batches of equal count in the
order of a shuffled data set, and the processor called in the training loop. From raymsa come the nouns alone: the job's
spec, its clips and what is predicted (labels, losses, the words of an answer).

transformers' Qwen2_5OmniProcessor needs torchvision for pictures, which raymsa does not need; `Processor` does what it
does, with its feature extractor and its 300 s of padding, and pictures in numpy (tests/test_parity.py holds it against
the real one). Frames come prepared; the real one would enlarge small ones, which is left out.

Axes: B clips, T tokens, V vocabulary, D width, A clips with sound, M mel bins, L mel frames, P patches, X numbers in a
patch, F frames, H height, W width, C colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
SD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
IGNORED = -100  # the label of a token that is not learned
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
NOT_QUANTISED = ["model.audio_tower", "model.visual", "lm_head"]


def check(spec: Any) -> None:
    """Raises ValueError, in one line, for a job that is more than the recipe knows."""
    from raymsa.readouts.base import Readout

    readout = spec.readout
    beyond = {
        "inputs.interleave": spec.inputs.interleave,
        "inputs.denoise": spec.inputs.denoise,
        "readout.constrained": getattr(readout, "constrained", False),
        f"what {readout.kind} puts before the Thinker": type(readout).before is not Readout.before,
        f"what {readout.kind} puts inside the Thinker": type(readout).inside is not Readout.inside,
    }
    if found := [name for name, on in beyond.items() if on]:
        raise ValueError(f"the plain recipe does not know {' nor '.join(found)}")


class Processor:
    """Clips to the keyword arguments of the Thinker's `forward`, as Qwen2_5OmniProcessor makes them."""

    def __init__(self, tokenizer: Any, extractor: Any, config: Any) -> None:
        self.tokenizer, self.extractor, self.vision = tokenizer, extractor, config.vision_config

    def __call__(self, conversations: list[Any], clips: list[Any], answers: list[str] | None = None) -> dict[str, Any]:
        """`clips` are those whose media the conversations name; with `answers`, `labels` are among what comes back."""
        media: dict[str, Any] = {}
        sounds = [clip.audio_S for clip in clips if clip.audio_S is not None]
        counts: list[int] = []
        if sounds:
            heard = self.extractor(
                [sound.astype(np.float32) / 32768 for sound in sounds],
                sampling_rate=16_000,
                padding="max_length",
                return_attention_mask=True,
                return_tensors="pt",
            )
            media = {"input_features": heard["input_features"], "feature_attention_mask": heard["attention_mask"]}
            counts = [((int(n) - 1) // 2 + 1 - 2) // 2 + 1 for n in heard["attention_mask"].sum(-1)]
        seen = [self._video(clip) for clip in clips if clip.frames_FHWC is not None]
        if seen:
            patches, grids, seconds = zip(*seen, strict=True)
            media["pixel_values_videos"] = torch.from_numpy(np.concatenate(patches))
            media["video_grid_thw"] = torch.tensor(grids)
            media["video_second_per_grid"] = torch.tensor(seconds)
        sizes = [int(np.prod(grid)) // self.vision.spatial_merge_size**2 for _, grid, _ in seen]
        texts = self.tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        texts = [self._filled(text, counts, sizes) for text in texts]
        return media | self._tokens(texts, answers)

    def _filled(self, text: str, counts: list[int], sizes: list[int]) -> str:
        """A placeholder for every vector of a tower; takes the counts of the media that the text names."""
        sound, picture = self.tokenizer.audio_token, self.tokenizer.video_token
        if picture in text:
            text = text.replace(picture, picture * sizes.pop(0))
        if sound in text:
            text = text.replace(sound, sound * counts.pop(0))
        return text

    def _tokens(self, texts: list[str], answers: list[str] | None) -> dict[str, Tensor]:
        end = self.tokenizer.eos_token
        whole = texts if answers is None else [text + said + end for text, said in zip(texts, answers, strict=True)]
        plain = {"add_special_tokens": False, "padding": True, "padding_side": "left", "return_tensors": "pt"}
        out = self.tokenizer(whole, **plain)
        made = {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"]}
        if answers is not None:
            labels = torch.full_like(made["input_ids"], IGNORED)
            for row, said in zip(labels, answers, strict=True):
                ids = self.tokenizer(said + end, add_special_tokens=False)["input_ids"]
                row[-len(ids) :] = torch.tensor(ids)
            made["labels"] = labels
        return made

    def _video(self, clip: Any) -> tuple[np.ndarray, tuple[int, int, int], float]:
        """Patches [P, X], their grid, and the seconds of one step in time."""
        size, merge, pair = self.vision.patch_size, self.vision.spatial_merge_size, self.vision.temporal_patch_size
        frames = (clip.frames_FHWC.astype(np.float32) / 255 - MEAN) / SD
        if missing := -len(frames) % pair:
            frames = np.concatenate([frames, frames[-1:].repeat(missing, 0)])
        count, height, width, colours = frames.shape
        grid = (count // pair, height // size, width // size)
        blocks = (grid[0], pair, grid[1] // merge, merge, size, grid[2] // merge, merge, size, colours)
        patches = frames.reshape(blocks).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        seconds = pair / (len(clip.frames_FHWC) / clip.seconds) if clip.seconds else 1.0
        return patches.reshape(int(np.prod(grid)), -1), grid, seconds


def load_model(path: str, dtype: torch.dtype, device: torch.device, quantised: bool, attention: str) -> Any:
    """The whole Thinker, as the model's page shows; lm_head and both towers whatever the job needs."""
    from transformers import BitsAndBytesConfig, Qwen2_5OmniThinkerForConditionalGeneration

    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=NOT_QUANTISED)
    return Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        path,
        dtype=dtype,
        quantization_config=nf4 if quantised else None,
        device_map={"": str(device)},
        attn_implementation=attention,
    )


class Plain:
    """A job's training and scoring, written plainly."""

    def __init__(self, spec: Any, target: Any, model: Any, folder: Any, device: torch.device, dtype: torch.dtype):
        """`model` is what `load_model` gives; `folder` has tokenizer, extractor and config."""
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        check(spec)
        self.spec, self.target, self.device, self.dtype = spec, target, device, dtype
        self.processor = Processor(folder.tokenizer, folder.extractor, folder.config)
        self._sees = {"audio": "audio" in spec.inputs.modalities, "video": "video" in spec.inputs.modalities}
        for module in model.modules():
            # On a CPU with AVX512-BF16 bitsandbytes packs weights for good at the first scoring, and computes in bf16:
            # scores would differ, and what is trained afterwards would get no gradients.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        recompute = bool(spec.train.checkpointing)
        options = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if recompute else {}
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=recompute, **options)
        lora = spec.lora
        targets = list(lora.targets)
        if lora.scope == "language_model":
            targets = rf".*language_model\..*\.({'|'.join(lora.targets)})"
        self.model = get_peft_model(
            model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
        )
        torch.manual_seed(spec.seeds[0])
        self.head = self._head(folder.config.text_config.hidden_size)
        groups = [{"params": [p for p in self.model.parameters() if p.requires_grad], "lr": spec.train.lora_lr}]
        if self.head is not None:
            groups.append({"params": list(self.head.parameters()), "lr": spec.train.head_lr})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=spec.train.weight_decay)

    def step(self, clips: list[Any], batch: int, on_pass: Any = None) -> float:
        """One optimizer step: `batch` clips a pass, gradients accumulated; the mean loss per clip.

        `on_pass` is told the tokens of each pass, padding not counted.
        """
        self._mode(True)
        self.optimizer.zero_grad()
        total = 0.0
        for start in range(0, len(clips), batch):
            some = clips[start : start + batch]
            inputs = self.inputs(some, answers=True)
            if on_pass:
                on_pass(int(inputs["attention_mask"].sum()))
            loss = self.loss_B(some, inputs).sum() / len(clips)
            loss.backward()
            total += loss.item()
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(params, self.spec.train.max_grad_norm)
        self.optimizer.step()
        return total

    def inputs(self, clips: list[Any], answers: bool = False) -> dict[str, Any]:
        """The processor's output on the device; `answers` matter to the generative readout alone."""
        from dataclasses import replace

        kept = [
            replace(
                clip,
                audio_S=clip.audio_S if self._sees["audio"] else None,
                frames_FHWC=clip.frames_FHWC if self._sees["video"] else None,
            )
            for clip in clips
        ]
        said = [self.target.say(clip.label) for clip in clips] if answers and self.head is None else None
        made = self.processor([self.conversation(clip) for clip in kept], kept, said)
        return {name: value.to(self.device) for name, value in made.items()}

    def conversation(self, clip: Any) -> list[dict[str, Any]]:
        """System message, then picture, sound and the words of the job's prompt."""
        media = [{"type": "video"}] * (clip.frames_FHWC is not None) + [{"type": "audio"}] * (clip.audio_S is not None)
        return [
            {"role": "system", "content": self.spec.inputs.system},
            {"role": "user", "content": [*media, {"type": "text", "text": self._words(clip)}]},
        ]

    def loss_B(self, clips: list[Any], inputs: dict[str, Any]) -> Tensor:
        """One loss per clip."""
        labels = inputs.pop("labels", None)
        label_B = torch.tensor([clip.label for clip in clips], dtype=torch.float32, device=self.device)
        with self._autocast():
            out = self.model(**inputs, output_hidden_states=True, use_cache=False)
        if self.head is not None:
            loss_B = self.target.loss_B(self._out_BK(out, inputs), label_B)
        else:
            says_BT = labels[:, 1:]
            logits_BVT = out.logits[:, :-1].float().transpose(1, 2)
            loss_BT = cross_entropy(logits_BVT, says_BT, reduction="none", ignore_index=IGNORED)
            loss_B = loss_BT.sum(1) / (says_BT != IGNORED).sum(1)
        return loss_B * self.target.weight_B(label_B)

    @torch.no_grad()
    def read(self, clips: list[Any]) -> list[Any]:
        """One reading per clip, of one padded batch."""
        self._mode(False)
        inputs = self.inputs(clips)
        with self._autocast():
            if self.head is not None:
                return self.target.read(self._out_BK(self.model(**inputs, output_hidden_states=True), inputs))
            said = self.model.generate(**inputs, max_new_tokens=self.spec.readout.max_new_tokens, do_sample=False)
        end = self.processor.tokenizer.eos_token_id
        answers = [
            row[: row.index(end)] if end in row else row for row in said[:, inputs["input_ids"].shape[1] :].tolist()
        ]
        return [self.target.parse(self.processor.tokenizer.decode(answer)) for answer in answers]

    def _out_BK(self, out: Any, inputs: dict[str, Any]) -> Tensor:
        last_BD = out.hidden_states[-1][:, -1]  # padded on the left
        with torch.autocast(self.device.type, enabled=False):
            return self.head(last_BD.float())

    def _head(self, width: int) -> nn.Module | None:
        head = self.spec.readout.head(width, self.target)
        return None if head is None else head.to(self.device)

    def _words(self, clip: Any) -> str:
        from raymsa.prompts import prompt_of
        from raymsa.thinker.prompt import Prompt

        if not hasattr(self, "_prompt"):
            language = self.spec.dataset.language
            told = (self.spec.inputs, prompt_of(self.spec), self.target.blanks(), language)
            self._prompt = Prompt(self.processor.tokenizer, *told)
        return self._prompt.words(clip)

    def _mode(self, training: bool) -> None:
        self.model.train(training)
        if self.head is not None:
            self.head.train(training)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is torch.bfloat16)
