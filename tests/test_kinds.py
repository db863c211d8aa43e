"""`raymsa kinds`: the fields of a job, as the spec has them."""

import json

from raymsa.kinds import kinds
from raymsa.spec import LAYOUTS, READOUTS


def row(field: str, kind: str = "") -> dict[str, object]:
    (found,) = [r for r in kinds() if r.field == field and r.kind == kind]
    return found._asdict()


def test_every_readout_and_dataset_layout_is_listed_with_what_it_is() -> None:
    listed = {(r.field, r.kind) for r in kinds() if r.field.endswith(".kind")}
    assert {kind for field, kind in listed if field == "readout.kind"} == set(READOUTS)
    assert {kind for field, kind in listed if field == "dataset.kind"} == set(LAYOUTS)
    assert row("readout.kind", "disc")["description"] == "A small head on the hidden state of the last token."


def test_a_field_has_its_type_bounds_default_and_description() -> None:
    assert row("lora.dropout") == {
        "field": "lora.dropout",
        "kind": "",
        "type": "number >= 0, < 1",
        "required": False,
        "default": 0.1,
        "description": "share of adapter inputs dropped in training",
    }
    assert row("model.quantization")["type"] == "nf4 | none"
    assert row("inputs.modalities")["default"] == ["text", "audio", "video"]


def test_a_field_of_one_kind_says_which() -> None:
    assert row("readout.head_width", "disc")["default"] == 256
    assert not [r for r in kinds() if r.field == "readout.head_width" and r.kind != "disc"]


def test_a_field_that_every_kind_has_is_listed_once() -> None:
    assert row("dataset.media.max_frames")["default"] == 16
    assert len([r for r in kinds() if r.field == "dataset.media.max_frames"]) == 1


def test_what_must_be_written_is_marked() -> None:
    assert row("name")["required"] is True
    assert row("train.epochs")["required"] is False


def test_a_section_that_may_be_left_out_says_so_before_its_fields() -> None:
    assert row("search")["type"] == "section | null"
    assert row("search.trials")["type"] == "whole number | null >= 1"


def test_every_row_says_what_it_is_about_and_goes_through_json() -> None:
    assert all(r.description for r in kinds())
    assert json.loads(json.dumps([r._asdict() for r in kinds()])) == [r._asdict() for r in kinds()]
