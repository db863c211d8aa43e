"""One prepared clip as a web page that needs nothing else: what the model sees, hears and reads of it.

Axes: F frames, H height, W width, C colours (RGB, or RGBA), S audio samples, M mel bins, L mel frames.
"""

from __future__ import annotations

import base64
import html
import io
import struct
import wave
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from raymsa.clip import SAMPLE_RATE, Clip, mel_frames

WIDEST = 1200  # columns of a picture of sound
WAVE_HEIGHT = 120
WAVE_COLOUR = (42, 120, 214, 255)  # readable on white and on black
# Dark to bright, evenly in lightness: perceptual order survives a printer and colour blindness (after viridis).
HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], float)
WHISPER = {"feature_size": 128, "sampling_rate": SAMPLE_RATE, "hop_length": 160, "n_fft": 400}  # Qwen2.5-Omni's

STYLE = """
:root { color-scheme: light dark; --faint: color-mix(in srgb, CanvasText 55%, Canvas); }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; background: Canvas; color: CanvasText;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.words { font-size: 1.3rem; margin: .5rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.faint, figcaption { color: var(--faint); font-size: .85rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .15rem 1.5rem .15rem 0; vertical-align: top; }
td { overflow-wrap: anywhere; } th { font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .75rem; }
figure { margin: 0; } img { display: block; max-width: 100%; }
.frames img { width: 100%; height: auto; } .sound img { width: 100%; }
.sound figure { margin: .75rem 0; } .mel { height: 16rem; } audio { width: 100%; }
"""


def page(
    clip: Clip,
    label: str,
    mel_ML: np.ndarray | None = None,
    text_tokens: int | None = None,
    language: str = "en",
    source: str = "",
) -> str:
    """The page of one clip, in UTF-8: pictures and sound are inside it, and it loads nothing.

    `label` is what the label means in words. `mel_ML` is the sound as the model hears it. `text_tokens` is None where
    no tokenizer was asked.
    """
    body = [
        f"<h1>{_safe(clip.id)}</h1>",
        f'<p class="words" lang="{_safe(language)}" dir="auto">{_safe(clip.text) or "<i>no words</i>"}</p>',
        _facts(clip, label, source),
        _tokens(clip, text_tokens),
        *_previous(clip, language),
        *_frames(clip),
        *_sound(clip, mel_ML),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
            "style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_safe(clip.id)}</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def mel(clip: Clip) -> np.ndarray | None:
    """Log-mel features [M, L] as Qwen2.5-Omni's audio tower gets them; None without sound."""
    if clip.audio_S is None:
        return None
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(**WHISPER)
    frames = mel_frames(len(clip.audio_S))
    # as in raymsa.thinker.inputs: a window of silence behind the sound, cut off again
    padded = np.zeros(frames * extractor.hop_length + extractor.n_fft, np.float32)
    padded[: len(clip.audio_S)] = clip.audio_S.astype(np.float32) / 32768
    out = extractor(padded, sampling_rate=SAMPLE_RATE, padding=False, truncation=False, return_tensors="np")
    mel_ML: np.ndarray = out["input_features"][0][:, :frames]
    return mel_ML


def png(image_HWC: np.ndarray) -> bytes:
    """A PNG file of a uint8 picture with 3 (RGB) or 4 (RGBA) channels."""
    height, width, channels = image_HWC.shape
    rows = image_HWC.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = 2  # filter Up: each row as the difference to the one above, which packs better
    filtered[0, 1:], filtered[1:, 1:] = rows[0], rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 4: 6}[channels], 0, 0, 0)
    data = zlib.compress(filtered.tobytes(), 6)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def wav(audio_S: np.ndarray) -> bytes:
    """A WAV file of 16 kHz mono int16 samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(audio_S.astype("<i2").tobytes())
    return file.getvalue()


def waveform(audio_S: np.ndarray) -> np.ndarray:
    """The lowest and highest sample of each stretch of sound as a picture [H, W, RGBA]; full scale is full height."""
    stretches = np.array_split(audio_S.astype(float) / 32768, min(WIDEST, len(audio_S)))
    spans = np.array([(stretch.min(), stretch.max()) for stretch in stretches])
    top, bottom = ((1 - spans[:, k]) / 2 * (WAVE_HEIGHT - 1) for k in (1, 0))
    y = np.arange(WAVE_HEIGHT)[:, None]
    image = np.zeros((WAVE_HEIGHT, len(spans), 4), np.uint8)
    image[(y >= np.floor(top)) & (y <= np.ceil(bottom))] = WAVE_COLOUR
    return image


def heat(mel_ML: np.ndarray) -> np.ndarray:
    """A mel spectrogram as a picture [H, W, RGB]: low tones below, loud is bright; neighbours are averaged if wide."""
    columns = np.array_split(mel_ML, min(WIDEST, mel_ML.shape[1]), axis=1)
    values = np.stack([column.mean(1) for column in columns], 1)[::-1]
    span = float(np.ptp(values)) or 1.0
    place = (values - values.min()) / span * (len(HEAT) - 1)
    low = np.minimum(place.astype(int), len(HEAT) - 2)
    share = (place - low)[..., None]
    image: np.ndarray = (HEAT[low] * (1 - share) + HEAT[low + 1] * share).round().astype(np.uint8)
    return image


def _facts(clip: Clip, label: str, source: str) -> str:
    facts: dict[str, str] = {
        "label": label,
        "split": clip.split,
        "video": clip.video_id,
        "length": f"{clip.seconds:.2f} s",
        **({"shards": source} if source else {}),
    }
    targets = f"<h2>All labels of the row</h2>{_table(clip.targets)}" if clip.targets else ""
    return _table(facts) + targets


def _tokens(clip: Clip, text_tokens: int | None) -> str:
    words = f"{len(clip.text.split())} words" if text_tokens is None else str(text_tokens)
    costs = {"words": words, "sound": str(clip.audio_tokens), "picture": str(clip.video_tokens)}
    total = clip.audio_tokens + clip.video_tokens + (text_tokens or 0)
    costs["together"] = f"{total}{' without the words' if text_tokens is None else ''}"
    note = "Places in the model's sequence; the prompt around them is not counted."
    how = " Words become tokens by a model's tokenizer: ask with --model." if text_tokens is None else ""
    return f'<h2>Tokens</h2>{_table(costs, "n")}<p class="faint">{note}{how}</p>'


def _previous(clip: Clip, language: str) -> Iterator[str]:
    if clip.previous:
        items = "".join(f'<li lang="{_safe(language)}" dir="auto">{_safe(text)}</li>' for text in clip.previous)
        yield f"<h2>Words of the clips before it, oldest first</h2><ol>{items}</ol>"


def _frames(clip: Clip) -> Iterator[str]:
    if clip.frames_FHWC is None:
        yield '<h2>Picture</h2><p class="faint">This clip has no picture.</p>'
        return
    count, height, width, _ = clip.frames_FHWC.shape
    yield f'<h2>Picture</h2><p class="faint">{count} frames of {width} x {height} pixels, as the model gets them.</p>'
    yield '<div class="frames">'
    for number, frame_HWC in enumerate(clip.frames_FHWC):
        about = f"frame {number + 1} of {count}"
        if clip.seconds:
            about += f", at about {(number + 0.5) * clip.seconds / count:.2f} s"  # the middle of its share of the clip
        yield f"<figure>{image(frame_HWC, about)}<figcaption>{about}</figcaption></figure>"
    yield "</div>"


def _sound(clip: Clip, mel_ML: np.ndarray | None) -> Iterator[str]:
    if clip.audio_S is None:
        yield '<h2>Sound</h2><p class="faint">This clip has no sound.</p>'
        return
    length = f"{len(clip.audio_S) / SAMPLE_RATE:.2f} s"
    loudest = float(np.abs(clip.audio_S.astype(float)).max()) / 32768 if len(clip.audio_S) else 0.0
    yield f'<h2>Sound</h2><div class="sound"><audio controls src="{data_uri("audio/wav", wav(clip.audio_S))}"></audio>'
    about = f"waveform: {length} of sound, 16 kHz mono, the loudest sample at {loudest:.0%} of full scale"
    if len(clip.audio_S):
        yield f"<figure>{image(waveform(clip.audio_S), about)}<figcaption>{about}</figcaption></figure>"
    if mel_ML is not None:
        about = f"mel spectrogram: {mel_ML.shape[0]} bins from 0 to 8 kHz (low tones below), {mel_ML.shape[1]} frames"
        yield f"<figure>{image(heat(mel_ML), about, 'mel')}<figcaption>{about}</figcaption></figure>"
    yield "</div>"


def _table(rows: Mapping[str, str], kind: str = "") -> str:
    cell = f'<td class="{kind}">' if kind else "<td>"
    lines = (f"<tr><th>{_safe(name)}</th>{cell}{_safe(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def image(image_HWC: np.ndarray, about: str, kind: str = "") -> str:
    """A picture as an element of a page, with its words for those who do not see it."""
    height, width, _ = image_HWC.shape
    named = f' class="{kind}"' if kind else ""
    source = data_uri("image/png", png(image_HWC))
    return f'<img{named} width="{width}" height="{height}" alt="{_safe(about)}" src="{source}">'


def data_uri(kind: str, content: bytes) -> str:
    """A file inside a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
