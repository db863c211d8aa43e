"""What every layout must do with its folder, whatever its form, and what a listing of a folder finds."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import SPLITS, RawClip, Reject
from raymsa.datasets.base import with_previous
from raymsa.datasets.folder import Listing
from raymsa.datasets.mmsa import COLUMNS
from raymsa.datasets.textfile import CHINESE, table_rows
from raymsa.errors import DataError
from raymsa.spec import LAYOUTS
from tests.layout_folders import EXAMPLES, touch, write_csv

# The contract. A new file in datasets/ adds its folder to EXAMPLES in layout_folders.py.


@pytest.fixture(params=sorted(LAYOUTS))
def example(request, tmp_path):
    assert request.param in EXAMPLES, f"add a folder of {request.param!r} to EXAMPLES in tests/layout_folders.py"
    (tmp_path / "raw").mkdir()
    return EXAMPLES[request.param](tmp_path / "raw")


@pytest.fixture
def rows(example, tmp_path):
    return list(example.dataset.clips(tmp_path / "raw"))


def clips_of(rows):
    return {row.id: row for row in rows if isinstance(row, RawClip)}


def test_every_row_is_a_clip_or_a_reject_once(example, rows):
    assert sorted(row.id for row in rows) == sorted([*example.good, *example.bad])
    assert clips_of(rows).keys() == example.good.keys()


def test_every_clip_has_its_split_its_file_and_a_label_of_the_task(example, rows, tmp_path):
    for clip in clips_of(rows).values():
        split, media = example.good[clip.id]
        assert clip.split == split in SPLITS
        assert (clip.media and clip.media.as_posix()) == media
        assert media is None or (tmp_path / "raw" / media).is_file()
        assert clip.label == example.dataset.task.label(clip.targets[example.dataset.target])


def test_every_damaged_row_is_named_with_its_reason(example, rows):
    rejects = {row.id: row.reason for row in rows if isinstance(row, Reject)}
    assert all(words in rejects[name] for name, words in example.bad.items())
    assert not any("\n" in reason for reason in rejects.values())


def test_a_clips_id_names_its_own_video_or_none(example, rows):
    assert all(example.dataset.video_of(clip.id) in (None, clip.video_id) for clip in clips_of(rows).values())
    if example.dataset.kind in ("cmu", "ch_sims", "meld", "synthetic"):
        assert all(example.dataset.video_of(clip.id) for clip in clips_of(rows).values())


def test_every_label_of_a_row_is_kept_under_its_name(example, rows):
    assert {name: clips_of(rows)[name].targets for name in example.targets} == example.targets


def test_clips_of_a_video_are_in_order_and_never_see_the_future(example, rows):
    clips = clips_of(with_previous(rows))
    ordered = [clips[name] for name in example.in_order]
    assert [clip.order for clip in ordered] == sorted({clip.order for clip in ordered})
    for earlier, later in itertools.pairwise(ordered):
        together = (earlier.split, earlier.video_id) == (later.split, later.video_id)
        assert later.previous == ((*earlier.previous, earlier.text) if together else ())
    assert all(clip.text not in clip.previous for clip in ordered[:1])


def test_the_same_folder_reads_the_same_twice(example, rows, tmp_path):
    example.dataset.make(tmp_path / "raw")
    assert list(example.dataset.clips(tmp_path / "raw")) == rows


def test_a_folder_that_is_not_there_is_one_line(example, tmp_path):
    with pytest.raises(DataError) as caught:
        list(example.dataset.clips(tmp_path / "nothing"))
    assert "nothing" in str(caught.value) and "\n" not in str(caught.value)


def test_every_layout_says_what_it_expects_and_survives_json(example):
    assert example.dataset.expects != LAYOUTS[example.dataset.kind].__mro__[1].expects
    assert type(example.dataset).model_validate_json(example.dataset.model_dump_json()) == example.dataset


def test_every_layout_reads_a_folder_that_is_not_on_a_disk(example, rows, tmp_path):
    upath = pytest.importorskip("upath")
    far = upath.UPath("memory://bucket") / tmp_path.name
    for path in sorted((tmp_path / "raw").rglob("*")):
        if path.is_file():
            place = far / path.relative_to(tmp_path / "raw").as_posix()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes().replace(str(tmp_path / "raw").encode(), str(far).encode()))
    assert list(example.dataset.clips(far)) == rows


# What a listing finds


@given(name=st.text(max_size=20))
def test_no_name_in_a_label_file_leads_a_listing_outside(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("outside")
    touch(folder, "secret.mp4", "raw/Raw/a/1.mp4")
    listing = Listing(folder / "raw")
    found = [listing.clip("Raw", place) for place in (name, f"{name}/1", "../../secret", "../../../etc/passwd")]
    assert set(found) <= {None, "Raw/a/1.mp4"}


def test_of_two_files_of_one_clip_the_one_with_picture_is_taken(tmp_path):
    touch(tmp_path, "Raw/a/1.wav", "Raw/a/1.MKV", "Raw/a/1.txt", "Raw/a/1.5.mp4")
    assert Listing(tmp_path).clip("Raw", "a/1") == "Raw/a/1.MKV"
    assert Listing(tmp_path).clip("Raw", "a/1.5") == "Raw/a/1.5.mp4"


@given(
    cells=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=9, max_size=9), max_size=4),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "gb18030"]),
    header=st.booleans(),
)
def test_every_row_of_a_label_file_comes_back_in_any_encoding_with_or_without_header(
    tmp_path_factory, cells, encoding, header
):
    cells = [[f"汉{cell}" for cell in row] for row in cells]  # Chinese, so that GB 18030 cannot be taken for UTF-8
    path = write_csv(tmp_path_factory.mktemp("csv") / "label.csv", [COLUMNS, *cells] if header else cells, encoding)
    if not header and not cells:
        return
    read = [fields for _, fields in table_rows(path, COLUMNS, encodings=CHINESE, without_header=COLUMNS)]
    assert [list(fields.values()) for fields in read] == cells
