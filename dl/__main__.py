"""`python -m dl` is `dlrun`."""

from dl.cli import process

if __name__ == "__main__":
    process()
