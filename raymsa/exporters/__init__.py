"""One file per tool that runs are exported to; a file more is a target more of `raymsa export --to`."""
