"""The command that serves the page: ui."""

from __future__ import annotations

import threading
import webbrowser
from types import ModuleType

import click

from raymsa.cli.base import main, say, store_option
from raymsa.errors import UsageError
from raymsa.home import store_url

HOST, PORT = "127.0.0.1", 8650


@main.command("ui", short_help="The store as a web page on this machine.")
@click.option("--host", default=HOST, show_default=True, help="The address to listen at; others can reach any other.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0 takes a free one.")
@click.option("--open/--no-open", "opened", default=None, help="Open a browser [default: where there is a screen].")
@click.option("--reports", help="A folder with a folder of reports for each job [default: reports under RAYMSA_HOME].")
@store_option
def ui_command(host: str, port: int, opened: bool | None, reports: str | None, url: str | None) -> None:
    """Queue, jobs, runs, curves and logs, live and only to read, until Ctrl-C; the printed address holds a token."""
    app = _imported()
    from raymsa.ui.security import QUERY, Door, is_loopback

    site = app.Site(url or store_url(), app.reports_folder(reports))
    say(f"the store: {site.source.words}")  # also refuses a URL that is none
    bound = app.listening(host, port)
    door, port = Door(), app.port_of(bound)
    address = app.address_of(host, port)
    if not is_loopback(host):
        say(f"warning: {host} can be reached from other machines, and nothing is encrypted: whoever has the address")
        say("below, or listens on the way, can read the store. Safer: ssh -L 8650:localhost:8650 THIS_MACHINE")

    def begun() -> None:
        say(f"open {address}?{QUERY}={door.token}")
        if app.may_open(opened):
            once = f"{address}?{QUERY}={door.code()}"
            threading.Thread(target=webbrowser.open, args=(once,), daemon=True).start()

    app.serve(app.guarded(site.app(), door, host, port), bound, begun)
    say("stopped")


def _imported() -> ModuleType:
    try:
        from raymsa.ui import app
    except ImportError as error:
        raise UsageError(f"raymsa ui needs {error.name}: pip install 'raymsa[ui]'") from None
    return app
