"""Running what `dlrun bundle` made."""

from __future__ import annotations

from dl.cli.running import Running, run_program
from dl.records import replace
from dl.shipping.archive import opened_bundle


def run_bundle(path: str, arguments: tuple[str, ...], options: Running) -> int:
    """Run the program of a bundle as the command line says, with the bundle's libraries and directories; return the exit code.

    Args:
        path: the bundle.
        arguments: the program's, without its name.
        options: all else.

    Raises:
        BundleError: it is damaged, or asks for what no bundle may.
        DlError: the program cannot be linked, or ended by an error.
    """
    with opened_bundle(path, trusted=options.trust_compiled) as bundle:
        folder, manifest = bundle.folder, bundle.manifest
        own = [(guest, str(folder / inside)) for guest, inside in manifest.directories.items()]
        changed = replace(
            options,
            library_path=(*options.library_path, [folder]),
            module_path=(*options.module_path, *([[folder]] if manifest.by_name else [])),
            preopens=(*own, *options.preopens),  # of two for one guest path, the last counts
        )
        return run_program(str(bundle.program), arguments, changed, called=manifest.program)
