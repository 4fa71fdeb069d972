"""The command ``serveprune``."""

import sys


def main() -> None:
    """Run the command line; a probe, which comes every few seconds, without what other commands import."""
    if sys.argv[1:2] == ["health"]:
        from serveprune.cli.health import main as run
    else:
        from serveprune.cli.app import main as run
    run()


if __name__ == "__main__":
    main()
