"""Running what `dlrun bundle` made."""

from __future__ import annotations

import click

from dl.shipping.archive import opened_bundle


def run_bundle(context: click.Context, path: str, *, trusted: bool) -> int:
    """Run the program of a bundle as the command line says, with the bundle's libraries and directories; return the exit code.

    Args:
        context: of `dlrun run`, whose words and options are those of the program.
        path: the bundle.
        trusted: whether compiled code in it may be run.

    Raises:
        BundleError: it is damaged, or asks for what no bundle may.
    """
    given = context.params
    with opened_bundle(path, trusted=trusted) as bundle:
        folder, manifest = bundle.folder, bundle.manifest
        own = [(guest, str(folder / inside)) for guest, inside in manifest.directories.items()]
        changed = {
            "program": str(bundle.program),
            "called": manifest.program,
            "library_path": (*given["library_path"], [folder]),
            "module_path": (*given["module_path"], *([[folder]] if manifest.by_name else [])),
            "preopens": (*own, *given["preopens"]),  # of two for one guest path, the last counts
        }
        code: int = context.invoke(context.command, **{**given, **changed})
        return code
