"""Decoding one file: which frames, how large, which sound, and what is refused."""

import math

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from raymsa.data.media import decode
from raymsa.data.picture import Chooser, SkipFailed, Times, grid
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError
from tests.media_files import damage, grey_ramp, stop_the_clock, tone, turn_by_90, write_media

SETTINGS = MediaSettings()


def brightness(media):
    """Which frames of a grey ramp were taken."""
    return [round(float(frame.mean()) / 10) for frame in media.frames_FHWC]


def test_a_clip_gives_frames_and_sound(tmp_path):
    media = decode(write_media(tmp_path / "a.mp4", grey_ramp(20), tone(2.0)), SETTINGS)
    assert media.frames_FHWC.shape == (16, 56, 84, 3) and media.frames_FHWC.dtype == np.uint8
    assert media.audio_S.dtype == np.int16 and abs(len(media.audio_S) / 16_000 - 2.0) < 0.15
    assert abs(media.seconds - 2.0) < 0.15 and not media.truncated and media.notes == ()


def test_frames_come_from_the_middle_of_equal_spans(tmp_path):
    path = write_media(tmp_path / "a.mp4", grey_ramp(20))
    assert brightness(decode(path, MediaSettings(max_frames=4))) == [2, 7, 12, 17]
    assert brightness(decode(path, MediaSettings(max_frames=1))) == [10]


def test_a_short_clip_keeps_every_frame_once(tmp_path):
    assert brightness(decode(write_media(tmp_path / "a.mp4", grey_ramp(5)), SETTINGS)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mpg", "a.ts", "a.m4v"])
def test_frames_are_chosen_alike_in_every_container(tmp_path, name):
    codec = "mpeg2video" if name.endswith(("mpg", "ts")) else "mpeg4"
    path = write_media(tmp_path / name, grey_ramp(20), fps=25, codec=codec)
    assert brightness(decode(path, MediaSettings(max_frames=4))) == [2, 7, 12, 17]


def test_frames_are_chosen_by_time_when_the_rate_varies(tmp_path):
    # The first frame stands for a second and a half, the others for a tenth each.
    path = write_media(tmp_path / "a.mkv", grey_ramp(6), times=[0, 15, 16, 17, 18, 19])
    assert brightness(decode(path, MediaSettings(max_frames=4))) == [0, 0, 0, 3]


def test_b_frames_come_in_the_order_they_are_shown(tmp_path):
    path = write_media(tmp_path / "a.mp4", grey_ramp(20), codec="libx264")
    shown = brightness(decode(path, SETTINGS))
    assert shown == sorted(shown) and len(set(shown)) == 16


def test_a_clip_without_sound_has_frames_only(tmp_path):
    media = decode(write_media(tmp_path / "a.mp4", grey_ramp(8)), SETTINGS)
    assert media.audio_S is None and len(media.frames_FHWC) == 8


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_sound_alone_is_mixed_to_16_khz_mono(tmp_path, name):
    soundfile.write(tmp_path / name, tone(1.5, rate=44_100, channels=2), 44_100)
    media = decode(tmp_path / name, SETTINGS)
    assert media.frames_FHWC is None and abs(len(media.audio_S) - 24_000) < 50
    pitch = np.abs(np.fft.rfft(media.audio_S[:16_000])).argmax()
    assert pitch == pytest.approx(440, abs=2)


def test_sound_stops_at_the_limit_and_says_so(tmp_path):
    media = decode(write_media(tmp_path / "a.mp4", grey_ramp(20), tone(2.0)), MediaSettings(max_audio_s=0.5))
    assert len(media.audio_S) == 8_000 and media.truncated and media.seconds > 1.9


def test_sound_shorter_than_10_ms_counts_as_none(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.005), 16_000)
    with pytest.raises(MediaError, match="no frames and no sound"):
        decode(tmp_path / "a.wav", SETTINGS)


def test_a_cover_picture_is_no_video(tmp_path):
    path = write_media(tmp_path / "a.m4a", sound=tone(1.0))
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp3"), "w") as out:
        voice, cover = out.add_stream("libmp3lame", rate=16_000), out.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame(64, 64, "yuvj420p")):
            out.mux(packet)
        for frame in source.decode(audio=0):
            frame.pts = None
            out.mux(voice.encode(frame))
        out.mux(voice.encode(None))
    media = decode(tmp_path / "b.mp3", SETTINGS)
    assert media.frames_FHWC is None and media.audio_S is not None


def test_a_phone_video_is_turned_upright(tmp_path):
    left_is_white = grey_ramp(4)
    for image in left_is_white:
        image[:, :48] = 255
    path = write_media(tmp_path / "a.mp4", left_is_white)
    turn_by_90(path)
    frame_HWC = decode(path, SETTINGS).frames_FHWC[0]
    assert frame_HWC.shape == (84, 56, 3)  # 72 x 96 turned: clockwise, so what was left is on top
    assert frame_HWC[:28].mean() > 200 > 60 > frame_HWC[-28:].mean()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"hello, this is text " * 50, "not a media file"), (bytes(5000), "not a media file")],
)
def test_a_file_that_is_no_media_is_refused_with_the_reason(tmp_path, content, reason, capfd):
    for name in ("a.mp4", "a.txt", "a.wav"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=reason):
            decode(tmp_path / name, SETTINGS)
    assert capfd.readouterr().err == ""  # ffmpeg keeps quiet


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(MediaError, match="missing file"):
        decode(tmp_path / "no.mp4", SETTINGS)
    with pytest.raises(MediaError, match="not a file"):
        decode(tmp_path, SETTINGS)
    with pytest.raises(MediaError, match="cannot be read"):
        decode(tmp_path / ("x" * 300), SETTINGS)


def test_a_playlist_does_not_make_us_read_other_files(tmp_path):
    write_media(tmp_path / "secret.ts", grey_ramp(8), codec="mpeg2video", fps=25)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(playlist)
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile 'secret.ts'\n")
    for name in ("a.mp4", "b.mp4"):
        with pytest.raises(MediaError, match="not a media file"):
            decode(tmp_path / name, SETTINGS)


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path):
    media = decode(write_media(tmp_path / "http:b%03d.mp4", grey_ramp(4)).absolute(), SETTINGS)
    assert len(media.frames_FHWC) == 4


def test_a_file_cut_in_the_middle_keeps_what_is_there(tmp_path):
    path = write_media(tmp_path / "a.ts", grey_ramp(20, 288, 352), tone(2.0), codec="mpeg2video", fps=25)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    media = decode(path, SETTINGS)
    assert 1 <= len(media.frames_FHWC) <= 16


def test_an_mp4_without_its_index_is_refused(tmp_path):
    path = write_media(tmp_path / "a.mp4", grey_ramp(20), tone(2.0))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(MediaError, match="not a media file"):
        decode(path, SETTINGS)


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_file_decodes_or_is_refused_but_nothing_else(tmp_path, seed, capfd):
    path = write_media(tmp_path / "a.mp4", grey_ramp(20), tone(2.0), codec="libx264")
    damage(path, b"mdat", share=(0.01, 0.1, 0.3, 0.6, 0.95)[seed], seed=seed)
    try:
        media = decode(path, SETTINGS)
        assert media.frames_FHWC is not None or media.audio_S is not None
    except MediaError as error:
        assert "no frames and no sound could be decoded" in str(error)
    assert capfd.readouterr().err == ""


def test_a_broken_stream_is_missing_and_noted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 72, 96, 3)).astype(np.uint8)
    path = write_media(tmp_path / "a.mkv", list(noise), tone(2.0), sound_codec="pcm_s16le", codec="ffv1")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as source:  # break every picture packet, keep the sound
        for packet in source.demux(video=0):
            if packet.size:
                at = data.index(bytes(packet)[:64])
                data[at : at + packet.size] = bytes(255 for _ in range(packet.size))
    path.write_bytes(data)
    media = decode(path, SETTINGS)
    assert media.frames_FHWC is None and media.audio_S is not None
    assert any("picture" in note for note in media.notes)


def test_a_stream_of_an_unknown_codec_is_missing_and_noted(tmp_path):
    path = write_media(tmp_path / "a.mkv", grey_ramp(8), tone(1.0), codec="ffv1")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XXXX"))
    media = decode(path, SETTINGS)
    assert media.frames_FHWC is None and media.audio_S is not None
    assert media.notes == ("picture: the codec is unknown",)


def test_the_same_file_decodes_to_the_same_bytes(tmp_path):
    path = write_media(tmp_path / "a.mp4", grey_ramp(20), tone(2.0))
    first, second = decode(path, SETTINGS), decode(path, SETTINGS)
    assert first.frames_FHWC.tobytes() == second.frames_FHWC.tobytes()
    assert first.audio_S.tobytes() == second.audio_S.tobytes()


sides = st.integers(1, 5000)


@given(sides, sides, st.integers(28 * 28, 2_000_000))
def test_the_grid_is_of_28_within_the_budget_and_never_larger(height, width, max_pixels):
    rows, columns = grid(height, width, max_pixels)
    assert rows % 28 == columns % 28 == 0 and rows * columns <= max_pixels
    assert 28 <= rows <= max(28, height) and 28 <= columns <= max(28, width)


@given(st.integers(28, 4000), st.integers(28, 4000))
def test_the_grid_keeps_the_aspect_to_less_than_one_patch(height, width):
    rows, columns = grid(height, width, 10**6)
    shrink = min(1, math.sqrt(10**6 / (height * width)))
    if min(height, width) * shrink >= 28:  # else the short side is raised to 28
        assert 0 <= height * shrink - rows < 28.01 and 0 <= width * shrink - columns < 28.01


def moving(frames, seed=0):
    """Frames that all differ and refer to each other: noise that moves."""
    noise = np.random.default_rng(seed).integers(0, 255, (64, 160, 3)).astype(np.uint8)
    return [np.ascontiguousarray(np.roll(noise, 3 * i, axis=1)[:, :80]) for i in range(frames)]


def chosen(path, frames, skipping):
    """The frames, and how many packets were decoded for them."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        times = Times()
        for packet in packets:
            times.add(packet)
        chooser = Chooser(times, frames, 100_000, skipping)
        return chooser.choose(packets, container.streams.video[0].codec_context)


CODECS = ("mpeg4", "libx264", "mpeg2video", "libvpx-vp9", "libx265")
HERE = [name for name in CODECS if name in av.codecs_available]


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    codec=st.sampled_from(HERE),
    gop=st.sampled_from([1, 5, 12, 40, 250]),
    b_frames=st.integers(0, 3),
    frames=st.integers(1, 90),
    wanted=st.integers(1, 16),
    closed=st.booleans(),
)
def test_skipping_gives_the_frames_of_decoding_everything(
    tmp_path_factory, codec, gop, b_frames, frames, wanted, closed
):
    options = {"g": str(gop), "bf": str(b_frames), "preset": "ultrafast", "x265-params": "log-level=none"}
    if closed and codec == "mpeg2video":
        options |= {"flags": "+cgop", "sc_threshold": "1000000000"}
    folder = tmp_path_factory.mktemp("skip")
    path = write_media(folder / "a.mkv", moving(frames), codec=codec, fps=25, options=options)
    assert np.array_equal(chosen(path, wanted, True), chosen(path, wanted, False))


@pytest.mark.skipif("libx264" not in HERE, reason="this PyAV has no libx264")
@pytest.mark.parametrize("extra", ["intra-refresh=1", "open-gop=1", "b-pyramid=normal:ref=4", "weightp=2:bframes=5"])
@pytest.mark.parametrize("ending", ["mp4", "ts", "mkv"])
def test_skipping_is_right_where_a_key_frame_is_not_a_clean_beginning(tmp_path, extra, ending):
    options = {"g": "20", "bf": "3", "x264-params": extra}
    path = write_media(tmp_path / f"a.{ending}", moving(90), codec="libx264", fps=25, options=options)
    whole = chosen(path, 16, False)
    try:
        skipped = chosen(path, 16, True)
    except SkipFailed:
        skipped = decode(path, MediaSettings()).frames_FHWC
    assert np.array_equal(skipped, whole)


def test_a_long_clip_is_not_decoded_whole(tmp_path):
    path = write_media(tmp_path / "a.mp4", moving(400), codec="mpeg4", fps=25, options={"g": "10"})
    with av.open(str(path)) as container:
        times, packets = Times(), [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets:
            times.add(packet)
        decoded = []

        class Codec:
            """The real decoder, with a list of what it was given."""

            def __init__(self, codec):
                self.codec = codec

            def decode(self, packet):
                decoded.append(packet)
                return self.codec.decode(packet)

            def __getattr__(self, name):
                return getattr(self.codec, name)

        Chooser(times, 8, 100_000).choose(packets, Codec(container.streams.video[0].codec_context))
    assert len(decoded) <= 8 * 12


def test_a_file_too_large_to_be_held_is_read_again_with_the_same_result(tmp_path, monkeypatch):
    path = write_media(tmp_path / "a.mp4", moving(60), tone(2.4), fps=25)
    held = decode(path, SETTINGS)
    monkeypatch.setattr("raymsa.data.media.KEPT_BYTES", 1000)
    again = decode(path, SETTINGS)
    assert np.array_equal(held.frames_FHWC, again.frames_FHWC) and np.array_equal(held.audio_S, again.audio_S)


def test_a_clip_of_0_frames_per_second_keeps_its_frames_in_order(tmp_path):
    stop_the_clock(write_media(tmp_path / "a.mp4", grey_ramp(20)))
    shown = brightness(decode(tmp_path / "a.mp4", MediaSettings(max_frames=4)))
    assert shown == sorted(shown) and len(set(shown)) == 4


def test_sound_of_six_channels_is_mixed_and_of_8_khz_brought_to_16(tmp_path):
    for name, sound, rate in (("a.mp4", tone(1.0, channels=6), 16_000), ("b.mp4", tone(1.0, rate=8000), 8000)):
        media = decode(write_media(tmp_path / name, sound=sound, rate=rate), SETTINGS)
        pitch = np.abs(np.fft.rfft(media.audio_S[:16_000])).argmax()
        assert pitch == pytest.approx(440, abs=2) and abs(len(media.audio_S) / 16_000 - 1) < 0.2
