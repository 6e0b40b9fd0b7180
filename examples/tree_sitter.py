"""Parses a source file with tree-sitter, linked by `dl`, and prints its syntax tree.

    npm ci --ignore-scripts --prefix examples/node
    python examples/tree_sitter.py --language python FILE

Offsets count UTF-16 code units, like those of web-tree-sitter.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text
from web_tree_sitter import Node, TreeSitter

import dl


def describe(node: Node) -> Text:
    """One line for one node, indented by its depth: `field: type [start, end)`; anonymous types quoted."""
    line = Text("  " * node.depth)
    if node.field is not None:
        line.append(f"{node.field}: ", "cyan")
    if node.missing:
        line.append("MISSING ", "bold red")
    if node.named:
        line.append(node.type, "bold red" if node.type == "ERROR" else "bold")
    else:
        line.append(json.dumps(node.type, ensure_ascii=False), "green")
    return line.append(f" [{node.start}, {node.end})", "dim")


@click.command()
@click.option(
    "--packages",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(__file__).parent / "node",
    show_default="examples/node",
    help="Folder that holds node_modules.",
)
@click.option("--language", required=True, help="Grammar: the package tree-sitter-LANGUAGE.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with an object for every node.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(packages: Path, language: str, as_json: bool, file: Path) -> None:
    """Print the syntax tree of FILE."""
    source = file.read_bytes().decode("utf-8", errors="replace")
    try:
        with closing(TreeSitter(packages)) as tree_sitter:
            nodes = tree_sitter.parse(tree_sitter.language(language), source)
    except dl.DlError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([node._asdict() for node in nodes], ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for node in nodes:
        console.print(describe(node))


if __name__ == "__main__":
    main()
