"""Job files: what a wrong one is told, and what a right one stands for."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raymsa.errors import SpecError
from raymsa.jobfile import load_dataset, load_job
from raymsa.merge import merge, parse_override
from raymsa.spec import JobSpec, check, digest, runs, trial

# A busy machine makes any example slow; that is no finding.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HEAD = "name: small\nmodel: {path: tiny}\ndataset: {kind: synthetic, name: s}\n"
WHOLE = HEAD + "readout: {kind: disc}\n"


def write(folder: Path, text: str | bytes, name: str = "job.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines a person is shown, without the file's name in front."""
    with pytest.raises(SpecError) as caught:
        load_job(path, list(overrides))
    assert caught.value.exit_code == 2
    with_set = " with --set" if overrides else ""
    return [line.removeprefix(f"{path}{with_set}: ") for line in str(caught.value).splitlines()]


def problem(path: Path, *overrides: str) -> str:
    (line,) = problems(path, *overrides)
    return line


def job(tmp_path: Path, more: str = "", *overrides: str) -> Any:
    return load_job(write(tmp_path, WHOLE + more), list(overrides))


def raw_job(**sections: Any) -> dict[str, Any]:
    required = {"name": "small", "model": {"path": "tiny"}, "dataset": {"kind": "synthetic", "name": "s"}}
    return {**required, "readout": {"kind": "disc"}, **sections}


# Wrong files


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("tarin: {}", "tarin: unknown key; did you mean 'train'? (known: name, "),
        ("bsae: x.yaml", "bsae: unknown key; did you mean 'base'?"),
        ("train: {epoch: 3}", "train.epoch: unknown key; did you mean 'epochs'? (known: epochs, batch_clips, "),
        ("train: {lr: 1e-4}", "train.lr: unknown key; did you mean 'lora_lr' or 'head_lr'?"),
        ("train: {xyz: 1}", "train.xyz: unknown key (known: epochs, "),
        ("evaluate: {splits: [tset]}", "evaluate.splits.0: given 'tset'; did you mean 'test'? (known: train, "),
        ("inputs: {modalities: [text, vidio]}", "inputs.modalities.1: given 'vidio'; did you mean 'video'?"),
        ("inputs: {modalities: [text, text]}", "inputs.modalities: name each modality once"),
        ("inputs: {modalities: []}", "inputs.modalities: given []; give at least 1"),
        (
            "inputs: {prompt: '{txt}'}",
            "inputs.prompt: cannot fill in {txt}; known for this task are {text}, {context}, {low}, {high}",
        ),
        ("inputs: {prompt: '{text.__class__}'}", "inputs.prompt: cannot fill in {text.__class__}; known for "),
        ("inputs: {prompt: '{text!r}{}'}", "inputs.prompt: cannot fill in {text!r}; known for this task are "),
        ("inputs: {prompt: 'a { b'}", "inputs.prompt: expected '}' before end of string; for a brace itself, "),
        ("train: {epochs: many}", "train.epochs: given 'many'; give a whole number"),
        ("train: {epochs: 1.5}", "train.epochs: given 1.5; give a whole number"),
        ("train: {epochs: yes}", "train.epochs: given 'true'; give a whole number"),
        ("train: {epochs: }", "train.epochs: given None; give a whole number"),
        ("train: {epochs: -1}", "train.epochs: given -1; input should be greater than or equal to 0"),
        ("train: {lora_lr: fast}", "train.lora_lr: given 'fast'; give a number"),
        ("train: {lora_lr: .inf}", "train.lora_lr: given inf; give a finite number"),
        ("train: {lora_lr: .nan}", "train.lora_lr: given nan; give a finite number"),
        ("train: {checkpointing: perhaps}", "train.checkpointing: given 'perhaps'; give true (every layer), "),
        ("train: {checkpointing: 0}", "train.checkpointing: given 0; give true (every layer), false, n (every n-th "),
        ("train: 3", "train: given 3; give a mapping (`field: value`)"),
        ("train:", "train: given None; give a mapping (`field: value`)"),
        ("lora: {targets: q_proj}", "lora.targets: given 'q_proj'; give a list: [q_proj]"),
        ("resources: {gpus: 2}", "resources.gpus: given 2; input should be less than or equal to 1"),
        ("seeds: 1111", "seeds: given 1111; give a list: [1111]"),
        ("seeds: []", "seeds: given []; give at least 1"),
        ("seeds: [1, 1]", "seeds: given [1, 1]; name each seed once"),
        ("seeds: [-1]", "seeds: given [-1]; give whole numbers from 0 to 4294967295"),
        ("base: 3", "base: given 3; give the path of one file"),
    ],
)
def test_a_wrong_field_is_one_line_with_where_what_was_given_and_what_is_right(
    tmp_path: Path, more: str, line: str
) -> None:
    assert problem(write(tmp_path, WHOLE + more + "\n")).startswith(line)


@pytest.mark.parametrize(
    ("readout", "line"),
    [
        ("{kind: dics}", "readout.kind: unknown kind 'dics'; did you mean 'disc'? (known: disc, gen)"),
        ("{kind: 3}", "readout.kind: unknown kind '3' (known: disc, gen)"),
        ("{kind: [disc]}", "readout.kind: unknown kind '['disc']'; did you mean 'disc'? (known: disc, gen)"),
        ("{head_width: 3}", "readout.kind: missing; it is one of disc, gen"),
        ("{kind: gen, head_width: 3}", "readout.head_width: unknown key (known: kind, max_new_tokens, constrained)"),
        ("[disc]", "readout: given ['disc']; give a mapping (`field: value`)"),
        ("disc", "readout: given 'disc': '{folder}/disc' cannot be read: No such file or directory; give the path"),
    ],
)
def test_a_wrong_kind_names_the_kinds_there_are(tmp_path: Path, readout: str, line: str) -> None:
    path = write(tmp_path, f"{HEAD}readout: {readout}\n")
    assert problem(path).startswith(line.replace("{folder}", str(tmp_path)))


def test_a_name_that_yaml_reads_as_a_number_is_told_about_quotes(tmp_path: Path) -> None:
    text = WHOLE.replace("small", "123")
    assert problem(write(tmp_path, text)) == 'name: given 123; give text (in quotes: "123")'
    assert load_job(write(tmp_path, text.replace("123", '"123"'))).name == "123"


def test_a_name_that_cannot_be_a_file_name_is_told_what_can(tmp_path: Path) -> None:
    line = problem(write(tmp_path, WHOLE.replace("small", "../x")))
    assert line.startswith("name: given '../x'; begin with a letter or digit; use letters, digits, '_', '.' and '-'")


def test_a_missing_field_is_told_what_it_is(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "name: x\n")) == [
        "model: missing; it is the Thinker",
        "dataset: missing; it is the clips",
        "readout: missing; it is how a score is read out of the Thinker",
    ]


def test_every_problem_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    found = problems(write(tmp_path, WHOLE + "tarin: {}\nseeds: 1\nlora: {rank: 0, alhpa: 1}\n"))
    assert [line.split(":")[0] for line in found] == ["lora.rank", "lora.alhpa", "seeds", "tarin"]


def test_a_long_value_is_cut_so_that_the_line_can_be_read(tmp_path: Path) -> None:
    assert len(problem(write(tmp_path, WHOLE + f"train: {{epochs: {'x' * 5000}}}\n"))) < 200


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [\nx: 1\n", ":3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("name: a\nseeds:\n\t- 1\n", ":3: not valid YAML: found character '\\t' that cannot start any token"),
        ("name: a\nseeds: [1]\nname: b\n", ":3: not valid YAML: key 'name' stands twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", ":3: not valid YAML: key 'epochs' stands twice"),
        ("1: a\n", ":1: not valid YAML: key 1 is not text; put it in quotes"),
        ("no: a\n", ":1: not valid YAML: key False is not text; put it in quotes"),
        ("name: a\n---\nname: b\n", ":2: not valid YAML: but found another document"),
        ("name: !!python/object:os.system {}\n", ":1: not valid YAML: could not determine a constructor for the tag"),
        ("train: &t {x: *t}\n", ":1: not valid YAML: found unconstructable recursive node"),
        ("name: \x01\n", ": not valid YAML: unacceptable character #x0001"),
        ("name: 2024-13-45\n", ": not valid YAML: month must be in 1..12"),
        ("seeds: [" + "9" * 5000 + "]\n", ": not valid YAML: Exceeds the limit"),
        ("[" * 3000, ": not valid YAML: nested too deep"),
        ("", ": holds nothing; give a mapping of fields (`name: ...`)"),
        ("# only a comment\n", ": holds nothing; give a mapping of fields (`name: ...`)"),
        ("- name: a\n", ": holds a list; give a mapping of fields (`name: ...`)"),
        ("just words\n", ": holds text; give a mapping of fields (`name: ...`)"),
        (b"name: \xff\xfe\n", ": not UTF-8 text (byte 6); save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_one_line_with_the_line_number(
    tmp_path: Path, text: str | bytes, line: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_job(path)
    assert str(caught.value).startswith(f"{path}{line}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_a_folder_is_one_line(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "nope.yaml", "No such file or directory"), (tmp_path, "Is a directory")]:
        assert problem(path) == f"'{path}' cannot be read: {reason}; give the path of a YAML file"


def test_a_byte_order_mark_and_merge_keys_are_legal_yaml(tmp_path: Path) -> None:
    assert load_job(write(tmp_path, "\ufeff" + WHOLE)).name == "small"
    assert job(tmp_path, "train: {<<: {epochs: 2, patience: 9}, epochs: 5}\n").train.epochs == 5


@patient
@given(st.binary(max_size=60))
def test_no_file_whatever_makes_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.mktemp("any"), data)
    with pytest.raises(SpecError):
        load_job(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@patient
@given(st.dictionaries(st.sampled_from([*JobSpec.model_fields, "train.epochs", "a.b"]), PLAIN, max_size=5))
def test_no_mapping_whatever_makes_a_traceback(sections: dict[str, Any]) -> None:
    try:
        check(raw_job(**sections), "here")
    except SpecError as error:
        assert all(line.startswith("here: ") for line in str(error).split("\n"))


# Base files and sections


def test_a_job_says_only_what_differs_from_its_base(tmp_path: Path) -> None:
    write(tmp_path, WHOLE + "train: {epochs: 7, patience: 2}\n", "configs/base.yaml")
    found = load_job(write(tmp_path, "base: ../configs/base.yaml\nname: mine\ntrain: {epochs: 1}\n", "jobs/job.yaml"))
    assert (found.name, found.train.epochs, found.train.patience) == ("mine", 1, 2)


def test_base_and_section_paths_are_relative_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "path: tiny\nquantization: none\n", "configs/models/m.yaml")
    write(tmp_path, WHOLE.replace("{path: tiny}", "models/m.yaml"), "configs/base.yaml")
    path = write(tmp_path, "base: ../configs/base.yaml\n", "jobs/job.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_job(path).model.quantization == "none"
    assert load_job(path.relative_to(tmp_path)).model.quantization == "none"


def test_base_and_section_paths_may_be_absolute(tmp_path: Path) -> None:
    model = write(tmp_path, "path: tiny\nquantization: none\n", "elsewhere/m.yaml")
    base = write(tmp_path, WHOLE.replace("{path: tiny}", str(model)), "elsewhere/base.yaml")
    assert load_job(write(tmp_path, f"base: {base}\n")).model.quantization == "none"


def test_a_section_file_and_a_dotted_field_of_it_go_together(tmp_path: Path) -> None:
    write(tmp_path, "path: tiny\n", "m.yaml")
    text = WHOLE.replace("model: {path: tiny}", "model: m.yaml\nmodel.quantization: none")
    assert load_job(write(tmp_path, text)).model.quantization == "none"


def test_a_missing_base_or_section_names_both_files(tmp_path: Path) -> None:
    path = write(tmp_path, "base: nope.yaml\n")
    assert problem(path).startswith(f"base: '{tmp_path}/nope.yaml' cannot be read: No such file or directory")
    path = write(tmp_path, WHOLE.replace("{path: tiny}", "nope.yaml"))
    assert problem(path).startswith(f"model: given 'nope.yaml': '{tmp_path}/nope.yaml' cannot be read: No such file")


def test_a_problem_inside_a_base_says_how_one_came_there(tmp_path: Path) -> None:
    write(tmp_path, "a: [\n", "base.yaml")
    assert problem(write(tmp_path, "base: base.yaml\n")).startswith(f"base: {tmp_path}/base.yaml:2: not valid YAML")


def test_a_path_with_a_nul_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read" in problem(write(tmp_path, 'base: "a\\0b"\n'))
    assert "cannot be read" in problem(write(tmp_path, WHOLE.replace("{path: tiny}", '"a\\0b"')))


def test_a_file_that_is_its_own_base_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, "base: job.yaml\n")
    assert problem(path).startswith("base: given 'job.yaml', which leads back to itself")


def test_a_loop_of_bases_is_one_line_that_names_them(tmp_path: Path) -> None:
    a = write(tmp_path, "base: b.yaml\n", "a.yaml")
    write(tmp_path, "base: sub/../a.yaml\n", "b.yaml")
    (tmp_path / "sub").mkdir()
    assert f"({tmp_path}/a.yaml -> {tmp_path}/b.yaml -> {tmp_path}/a.yaml)" in problem(a)


def test_a_base_may_have_a_base(tmp_path: Path) -> None:
    write(tmp_path, WHOLE + "lora: {rank: 4}\n", "a.yaml")
    write(tmp_path, "base: a.yaml\nlora: {alpha: 5}\n", "b.yaml")
    found = load_job(write(tmp_path, "base: b.yaml\nlora: {dropout: 0}\n")).lora
    assert (found.rank, found.alpha, found.dropout) == (4, 5, 0)


def test_a_base_does_not_break_the_dotted_names_of_a_search_space_or_a_variant(tmp_path: Path) -> None:
    write(tmp_path, WHOLE, "base.yaml")
    text = "base: base.yaml\nsearch: {trials: 1, space: {lora.rank: {choice: [4, 8]}}}\n"
    assert list(load_job(write(tmp_path, text)).search.space) == ["lora.rank"]
    text = "base: base.yaml\nvariants: {v1.5: {lora.rank: 4}}\n"
    assert [run.variant for run in runs(load_job(write(tmp_path, text)))][:1] == ["v1.5"]


def test_a_dataset_file_is_checked_like_a_job(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: cmuu\nname: x\n", "d.yaml")
    with pytest.raises(SpecError, match=r"d\.yaml: kind: unknown kind 'cmuu'; did you mean 'cmu'\?"):
        load_dataset(path)
    path = write(tmp_path, "kind: cmu\nname: x\npublished: {trian: 1}\nmedia: {max_frame: 1}\n", "d.yaml")
    with pytest.raises(SpecError) as caught:
        load_dataset(path)
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["published.trian", "media.max_frame"]
    path = write(tmp_path, "kind: cmu\nname: x\n", "d.yaml")
    assert load_dataset(path, ["media.max_frames=8", "media.max_audio_s=2"]).media.max_frames == 8


# --set


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.lora_lr=1e-4", ("train", "lora_lr"), 1e-4),
        ("train.lora_lr='1e-4'", ("train", "lora_lr"), 1e-4),
        ("train.lora_lr=2E+1", ("train", "lora_lr"), 20.0),
        ("train.epochs= 3", ("train", "epochs"), 3),
        ("seeds=[1, 2]", ("seeds",), (1, 2)),
        ("inputs.modalities=[audio, text]", ("inputs", "modalities"), ("text", "audio")),
        ("lora={rank: 4}", ("lora", "rank"), 4),
        ("inputs.system='a: b=c'", ("inputs", "system"), "a: b=c"),
        ("inputs.system=Größe {text}", ("inputs", "system"), "Größe {text}"),
        ("search=null", ("search",), None),
    ],
)
def test_a_field_can_be_set_from_the_command_line(
    tmp_path: Path, override: str, field: tuple[str, ...], value: Any
) -> None:
    found: Any = job(tmp_path, "", override)
    for part in field:
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epochs", "--set train.epochs: write it as field=value, for example train.lora_lr=1e-4"),
        ("=3", "--set =3: write it as field=value"),
        ("train..epochs=3", "--set train..epochs=3: write it as field=value"),
        ("train.=3", "--set train.=3: write it as field=value"),
        ("train.epoch=3", "train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs=", "train.epochs: given None; give a whole number"),
        ("train.epochs.x=3", "train.epochs: given {'x': 3}; give a whole number"),
        ("seeds=1,2", "seeds: given '1,2'; give a list: [1,2]"),
        ("inputs.system=a: b: c", "--set inputs.system=a: b: c: not valid YAML: mapping values are not allowed here"),
        ("train=[", "--set train=[: not valid YAML"),
        ("base=x.yaml", "--set base=x.yaml: a base is named in the file"),
        ("model=nope.yaml", "--set: model: given 'nope.yaml': 'nope.yaml' cannot be read"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, override: str, line: str) -> None:
    assert problem(write(tmp_path, WHOLE), override).startswith(line)


def test_an_override_is_stronger_than_the_file_and_the_file_than_its_base(tmp_path: Path) -> None:
    write(tmp_path, WHOLE + "lora: {rank: 1, alpha: 1, dropout: 0.5}\n", "base.yaml")
    path = write(tmp_path, "base: base.yaml\nlora: {rank: 2, alpha: 2}\n")
    lora = load_job(path, ["lora.rank=3"]).lora
    assert (lora.rank, lora.alpha, lora.dropout) == (3, 2, 0.5)


def test_a_section_file_in_an_override_is_relative_to_the_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "path: tiny\nquantization: none\n", "here/m.yaml")
    path = write(tmp_path, WHOLE, "jobs/job.yaml")
    monkeypatch.chdir(tmp_path / "here")
    assert load_job(path, ["model=m.yaml"]).model.quantization == "none"


def test_the_order_of_overrides_does_not_matter_when_one_changes_the_kind(tmp_path: Path) -> None:
    both = ["readout.max_new_tokens=4", "readout.kind=gen"]
    assert job(tmp_path, "", *both) == job(tmp_path, "", *reversed(both))


# Variants


def test_a_variant_that_changes_the_kind_drops_the_other_kinds_fields(tmp_path: Path) -> None:
    text = HEAD + "readout: {kind: disc, head_width: 7}\nvariants: {a: {}, b: {readout.kind: gen}}\n"
    a, b = (run.spec.readout for run in runs(load_job(write(tmp_path, text + "seeds: [1]\n"))))
    assert (a.kind, a.head_width) == ("disc", 7)
    assert b.model_dump() == {"kind": "gen", "max_new_tokens": 8, "constrained": False}


def test_a_variant_that_keeps_the_kind_keeps_the_fields(tmp_path: Path) -> None:
    text = HEAD + "readout: {kind: disc, head_width: 7}\nseeds: [1]\nvariants: {a: {readout: {kind: disc}}}\n"
    (run,) = runs(load_job(write(tmp_path, text)))
    assert run.spec.readout.head_width == 7


def test_the_order_inside_a_variant_does_not_matter_when_one_field_is_the_kind(tmp_path: Path) -> None:
    one, other = (
        job(tmp_path, f"variants: {{a: {{{fields}}}}}\n")
        for fields in (
            "readout.max_new_tokens: 4, readout.kind: gen",
            "readout.kind: gen, readout.max_new_tokens: 4",
        )
    )
    assert runs(one)[0].spec.readout.max_new_tokens == 4
    assert digest(one) == digest(other)


def test_every_variant_is_checked_and_every_problem_told(tmp_path: Path) -> None:
    text = WHOLE + "variants: {a: {}, b: {readout.knd: gen}, c: {train: {epochs: x}, lora.rank: 0}}\n"
    assert [line.split(";")[0].split(" (")[0] for line in problems(write(tmp_path, text))] == [
        "variants.b: readout.knd: unknown key",
        "variants.c: lora.rank: given 0",
        "variants.c: train.epochs: given 'x'",
    ]


@pytest.mark.parametrize("field", ["seeds: [1]", "name: x", "search: null", "variants: {}", "dataset.seed: 9"])
def test_a_variant_may_not_change_what_the_whole_job_shares(tmp_path: Path, field: str) -> None:
    line = problem(write(tmp_path, WHOLE + f"variants: {{a: {{{field}}}}}\n"))
    assert line.startswith(f"variants.a.{field.split(':')[0].split('.')[0]}: a variant cannot change this: ")


@pytest.mark.parametrize("name", ["a/b", "..", "", "a b", "-a"])
def test_a_variants_name_becomes_part_of_a_folders_name(tmp_path: Path, name: str) -> None:
    line = problem(write(tmp_path, WHOLE + f"variants: {{'{name}': {{}}}}\n"))
    assert line.startswith(f"variants: given '{name}'; a variant's name has letters")


def test_a_variant_without_a_mapping_is_one_line(tmp_path: Path) -> None:
    line = problem(write(tmp_path, WHOLE + "variants: {a: }\n"))
    assert line == "variants.a: given None; give a mapping (`field: value`)"


def test_a_variant_may_take_its_model_from_a_file(tmp_path: Path) -> None:
    write(tmp_path, "path: tiny\nquantization: none\n", "m.yaml")
    found = job(tmp_path, "variants: {nf4: {}, full: {model: m.yaml}}\nseeds: [1]\n")
    assert [run.spec.model.quantization for run in runs(found)] == ["nf4", "none"]


# Search


@pytest.mark.parametrize(
    ("field", "given", "stored"),
    [
        ("lora.rank", "{choice: [4, 8]}", {"choice": [4, 8]}),
        ("inputs.modalities", "{choice: [[text], [text, audio]]}", {"choice": [["text"], ["text", "audio"]]}),
        ("readout.kind", "{choice: [disc, gen]}", {"choice": ["disc", "gen"]}),
        ("lora.rank", "{int: [4, 64]}", {"int": [4, 64]}),
        ("lora.dropout", "{uniform: [0, 0.5]}", {"uniform": [0.0, 0.5]}),
        ("train.lora_lr", "{loguniform: [1e-5, 1e-3]}", {"loguniform": [1e-5, 1e-3]}),
        ("train.lora_lr", "{loguniform: ['1e-5', '1e-3']}", {"loguniform": [1e-5, 1e-3]}),
    ],
)
def test_a_search_range_has_one_of_four_forms(tmp_path: Path, field: str, given: str, stored: dict[str, Any]) -> None:
    found = job(tmp_path, f"search: {{trials: 1, space: {{{field}: {given}}}}}\n")
    assert found.search.space == {field: stored}
    assert len(runs(found)) == 1


@pytest.mark.parametrize(
    ("field", "given", "line"),
    [
        ("lora.rank", "[4, 8]", "search.space.lora.rank: given [4, 8]; give a mapping"),
        ("lora.rank", "{}", "search.space: lora.rank: given {}; give one of choice, int, uniform, loguniform"),
        ("lora.rank", "{choise: [4]}", "search.space: lora.rank: given {'choise': [4]}; give one of choice, int"),
        ("lora.rank", "{choice: 4}", "search.space: lora.rank.choice: given 4; give a list"),
        ("lora.rank", "{choice: []}", "search.space: lora.rank.choice: given []; give a list"),
        ("lora.rank", "{int: [1.5, 4]}", "search.space: lora.rank.int: given [1.5, 4]; give [low, high], two whole"),
        ("lora.rank", "{int: [no, yes]}", "search.space: lora.rank.int: given [False, True]; give [low, high]"),
        ("lora.rank", "{int: [4]}", "search.space: lora.rank.int: given [4]; give [low, high]"),
        ("lora.rank", "{int: 4}", "search.space: lora.rank.int: given 4; give [low, high]"),
        ("lora.dropout", "{uniform: [0.5, 0]}", "search.space: lora.dropout.uniform: given [0.5, 0]; give [low, high]"),
        ("lora.alpha", "{uniform: [1, .inf]}", "search.space: lora.alpha.uniform: given [1, inf]; give [low, high]"),
        (
            "lora.alpha",
            "{uniform: [a, b]}",
            "search.space: lora.alpha.uniform: given ['a', 'b']; give [low, high], two",
        ),
        (
            "lora.alpha",
            "{loguniform: [0, 1]}",
            "search.space: lora.alpha.loguniform: given [0, 1]; low must be above 0",
        ),
        ("lora.rnak", "{choice: [4]}", "search.space.lora.rnak: lora.rnak: unknown key; did you mean 'rank'?"),
        ("lora.rank", "{choice: [4, 0]}", "search.space.lora.rank: lora.rank: given 0; input should be greater"),
        ("lora.rank", "{uniform: [4, 8]}", "search.space.lora.rank: lora.rank: given 5."),
        (
            "lora.dropout",
            "{uniform: [0, 1]}",
            "search.space.lora.dropout: lora.dropout: given 1.0; input should be less",
        ),
        ("seeds", "{choice: [[1], [2]]}", "search.space.seeds: a search cannot change this: "),
        ("dataset.seed", "{choice: [1, 2]}", "search.space.dataset.seed: a search cannot change this: "),
    ],
)
def test_a_wrong_search_range_is_one_line(tmp_path: Path, field: str, given: str, line: str) -> None:
    path = write(tmp_path, WHOLE + f"search: {{trials: 1, space: {{{field}: {given}}}}}\n")
    assert problem(path).startswith(line)


def test_a_job_has_variants_or_a_search(tmp_path: Path) -> None:
    text = WHOLE + "variants: {a: {}}\nsearch: {trials: 1, space: {lora.rank: {choice: [4]}}}\n"
    assert problem(write(tmp_path, text)) == "a job has variants or a search, not both"


def test_a_search_range_can_be_set_from_the_command_line(tmp_path: Path) -> None:
    found = job(tmp_path, "", "search.space.lora.rank={int: [1, 4]}", "search.trials=2")
    assert found.search.space == {"lora.rank": {"int": [1, 4]}}


def test_a_trial_is_the_template_with_its_values_checked_again(tmp_path: Path) -> None:
    (template,) = runs(job(tmp_path, "search: {trials: 1, space: {lora.rank: {choice: [4]}}}\nseeds: [5]\n"))
    made = trial(template, {"readout.max_new_tokens": 4, "lora.rank": 4, "readout.kind": "gen"})
    assert (made.spec.lora.rank, made.spec.readout.kind, made.spec.readout.max_new_tokens) == (4, "gen", 4)
    assert made.seed == 5
    assert made.spec.search is None
    with pytest.raises(SpecError, match=r"search trial: lora\.rank: given 0"):
        trial(template, {"lora.rank": 0})


# Merge

LEAF = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
# Leaves stay leaves and sections stay sections, as in files of one spec.
FILES = st.fixed_dictionaries(
    {},
    optional={
        "name": LEAF,
        "seeds": LEAF,
        "train": st.fixed_dictionaries({}, optional={"epochs": LEAF, "patience": LEAF}),
        "dataset": st.fixed_dictionaries(
            {}, optional={"raw": LEAF, "media": st.fixed_dictionaries({}, optional={"max_frames": LEAF})}
        ),
        "train.epochs": LEAF,
        "dataset.media.max_frames": LEAF,
    },
)
ANY = st.dictionaries(st.sampled_from(["kind", "a", "b", "a.b", "variants"]), PLAIN | FILES, max_size=4)


@patient
@given(FILES, FILES, FILES)
def test_merging_three_files_gives_the_same_from_either_side(a: Any, b: Any, c: Any) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


@patient
@given(FILES)
def test_merging_nothing_or_the_same_again_changes_nothing(a: Any) -> None:
    plain = merge({}, a)
    assert plain == merge(a, {}) == merge(plain, plain)
    assert not any("." in key for key in plain)


@patient
@given(ANY, ANY)
def test_merging_changes_neither_input(a: Any, b: Any) -> None:
    before = copy.deepcopy((a, b))
    merge(a, b)
    assert repr((a, b)) == repr(before)  # repr, because NaN is not equal to itself


@patient
@given(FILES, FILES)
def test_what_the_stronger_file_says_stands(a: Any, b: Any) -> None:
    merged, strong = merge(a, b), merge({}, b)
    assert all(merged[key] == value for key, value in strong.items() if not isinstance(value, dict))
    assert merged.keys() == merge({}, a).keys() | strong.keys()


def test_loading_a_job_leaves_its_mapping_as_it_was() -> None:
    raw = raw_job(variants={"a": {"lora.rank": 4}}, seeds=[1])
    before = copy.deepcopy(raw)
    runs(check(raw, "here"))
    assert raw == before
    raw = raw_job(search={"trials": 1, "space": {"lora.alpha": {"uniform": ["1", "2"]}}})
    before = copy.deepcopy(raw)
    check(raw, "here")
    assert raw == before


def test_an_override_is_plain_nested_data() -> None:
    assert parse_override("train.lora_lr=1e-4") == {"train": {"lora_lr": 1e-4}}
    assert parse_override("a=b=c") == {"a": "b=c"}


# Digest, runs, groups


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    raw = raw_job(train={"epochs": 3, "patience": 2}, variants={"a": {"lora.rank": 4, "lora.alpha": 2}})
    backwards = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in reversed(raw.items())
    }
    assert digest(check(raw, "")) == digest(check(backwards, ""))


def test_a_digest_is_the_same_in_every_process_and_release() -> None:
    assert digest(check(raw_job(), "")) == digest(JobSpec.model_validate(raw_job()))
    assert len(digest(check(raw_job(), ""))) == 16


def test_a_default_that_is_written_out_changes_no_digest() -> None:
    written = check(raw_job(), "").model_dump(mode="json")
    assert digest(check(raw_job(), "")) == digest(check(written, ""))
    assert digest(check(raw_job(lora={"alpha": 32}), "")) == digest(check(raw_job(), ""))


def test_an_optimizer_of_gpus_is_refused_on_a_cpu(tmp_path: Path) -> None:
    path = write(tmp_path, WHOLE + "resources: {gpus: 0}\ntrain: {optimizer: paged_adamw_8bit}\n")
    assert problem(path) == "train.optimizer: paged_adamw_8bit needs a GPU, and resources.gpus is 0; take adamw"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("true", True), ("false", False), ("none", False), ("1", True), ("2", 2), ("5", 5), ("towers", "towers")],
)
def test_checkpointing_is_written_as_before_or_as_a_policy(tmp_path: Path, written: str, meant: object) -> None:
    found = job(tmp_path, "", f"train.checkpointing={written}").train.checkpointing
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "model.quantization=none",
        "inputs.prompt='{text}!'",
        "inputs.modalities=[text]",
        "lora.rank=31",
        "lora.scope=language_model",
        "train.epochs=9",
        "train.checkpointing=false",
        "seeds=[1]",
        "variants={a: {}}",
        "search={trials: 1, space: {lora.rank: {choice: [1]}}}",
        "resources.cpus=2",
        "evaluate.splits=[test]",
        "dataset.seed=8",
        "dataset.media.max_frames=15",
        "readout.head_width=255",
        "readout.kind=gen",
    ],
)
def test_a_digest_changes_with_every_field(tmp_path: Path, override: str) -> None:
    assert digest(job(tmp_path)) != digest(job(tmp_path, "", override))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"variants": {"a": {}, "b": {"readout.kind": "gen", "lora": {"alpha": 1}}}},
        {"search": {"trials": 2, "space": {"train.lora_lr": {"loguniform": ["1e-5", 1]}}}},
        {"lora": {"alpha": 16}, "train": {"checkpoint_every_s": 1}, "inputs": {"modalities": ["video", "text"]}},
    ],
)
def test_a_resolved_job_goes_through_json_as_the_queue_stores_it(more: dict[str, Any]) -> None:
    there = check(raw_job(**more), "here")
    back = check(json.loads(json.dumps(there.model_dump(mode="json"))), "back")
    assert back == there
    assert digest(back) == digest(there)
    assert [run.group for run in runs(back)] == [run.group for run in runs(there)]


def test_runs_are_variants_times_seeds(tmp_path: Path) -> None:
    found = runs(job(tmp_path, "seeds: [1, 2, 3]\nvariants: {a: {}, b: {lora.rank: 4}}\n"))
    assert [(run.variant, run.seed) for run in found] == [(v, s) for v in "ab" for s in (1, 2, 3)]
    assert all(run.spec.seeds == (run.seed,) and not run.spec.variants for run in found)
    assert {run.spec.lora.rank for run in found if run.variant == "b"} == {4}


def test_a_job_without_variants_has_one_named_after_its_readout(tmp_path: Path) -> None:
    assert {run.variant for run in runs(job(tmp_path))} == {"disc"}


def test_a_group_is_the_same_over_seeds_and_names_and_differs_over_variants(tmp_path: Path) -> None:
    more = "seeds: [1, 2]\nvariants: {a: {}, b: {lora.rank: 4}, c: {readout.kind: gen}}\n"
    found = runs(job(tmp_path, more))
    groups = [[run.group for run in found if run.variant == variant] for variant in "abc"]
    assert all(len(set(group)) == 1 for group in groups)
    assert len({group[0] for group in groups}) == 3
    assert [run.group for run in runs(job(tmp_path, more, "name=other"))] == [run.group for run in found]
