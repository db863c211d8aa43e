"""TensorBoard: one folder per run under its job, with scalars, a page of text, and the HParams table.

Event files are written with TensorBoard's own messages; its scalars are float32. Seeds share an HParams group.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from raymsa.exporters.base import Done, Exporter, Recorded, is_there, locked, needed, replaced

STATES = {"done": "STATUS_SUCCESS", "pruned": "STATUS_SUCCESS", "failed": "STATUS_FAILURE"}
STATES |= {"cancelled": "STATUS_FAILURE", "running": "STATUS_RUNNING"}


class TensorBoard(Exporter):
    """Event files for `tensorboard --logdir`."""

    kind: Literal["tensorboard"] = "tensorboard"

    def write(self, runs: Sequence[Recorded], out: Path) -> Done:
        """One folder for each run; one that has changed since is written anew, one that has not is left alone."""
        needed("tensorboard", self.kind)
        done = Done([], [], f"tensorboard --logdir {shlex.quote(str(out))}")
        with locked(out):
            for one in runs:
                folder = out / one.job.id / _file_name(one)
                if is_there(folder, one.mark):
                    done.there.append(one.run.id)
                    continue
                with replaced(folder, one.mark) as part:
                    _write(part, one)
                done.written.append(one.run.id)
        return done


def _file_name(one: Recorded) -> str:
    """The run's id, if a file system takes it; TensorBoard shows it as the run's name."""
    short = len(one.run.id.encode()) < 200 and not one.run.id.startswith(".")
    return one.run.id if short else one.key


def _write(folder: Path, one: Recorded) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    name = f"events.out.tfevents.{int(one.begun_at)}.raymsa"
    with (folder / name).open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=one.begun_at, file_version="brain.Event:2").SerializeToString())
        for event in _events(one):
            writer.write(event.SerializeToString())


def _events(one: Recorded) -> Iterator[Any]:
    """Parameters first, metrics in the order of their steps, then how it ended."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    yield Event(wall_time=one.begun_at, summary=Summary(value=[_start(one)]))
    yield Event(wall_time=one.begun_at, summary=Summary(value=[_page(one)]))
    for moment in one.moments:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in moment.values.items()]
        yield Event(wall_time=moment.at, step=moment.step, summary=Summary(value=values))
    last = one.run.step or 0
    finals = [Summary.Value(tag=name, simple_value=value) for name, value in one.finals.items()]
    yield Event(wall_time=one.ended_at, step=last, summary=Summary(value=finals))
    if one.run.state in STATES:
        yield Event(wall_time=one.ended_at, step=last, summary=Summary(value=[_end(one)]))


def _page(one: Recorded) -> Any:
    """Tags and spec as text, indented: TensorBoard shows it as it is and makes no Markdown of it."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    plain = {"tags": one.tags, "spec": one.run.spec}
    text = "\n".join(f"    {line}" for line in json.dumps(plain, indent=2, ensure_ascii=False).splitlines())
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = make_tensor_proto([text.encode(errors="replace")])
    return Summary.Value(tag="raymsa/text_summary", metadata=metadata, tensor=tensor)


def _start(one: Recorded) -> Any:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(group_name=one.run.group_key, start_time_secs=one.begun_at)
    for name, value in {**one.params, **{f"raymsa.{tag}": text for tag, text in one.tags.items()}}.items():
        if isinstance(value, bool):
            info.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = value
    data = plugin_data_pb2.HParamsPluginData(session_start_info=info)
    return _hparams(metadata.SESSION_START_INFO_TAG, data)


def _end(one: Recorded) -> Any:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.Status.Value(STATES[one.run.state])
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=one.ended_at)
    return _hparams(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
