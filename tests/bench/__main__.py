"""Time training steps against other frameworks on this machine. In the folder of a clone:

    python -m tests.bench --quick          tiny sizes, two rounds: shows that all is in order
    python -m tests.bench --torch ~/torch/bin/python --json runs/bench.json

requirements.txt beside this file says how to install the other frameworks.
"""

import argparse
import sys

from .timing import PEERS, bench


def main(arguments=None):
    """Returns the exit status: 0, or 2 for bad input, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--works", nargs="*", help="what to time (everything)")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds of each (%(default)s)")
    parser.add_argument("--threads", type=int, nargs="*", help="numbers of threads (1 2; with a card 1)")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter that has {peer}, if not this one")
    parser.add_argument("--json", metavar="FILE", help="write the rows here")
    parser.add_argument("--chart", metavar="FILE", help="draw a bar chart here (.png or .svg)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: shows that all is in order")
    parser.add_argument(
        "--device", default="cpu", choices=("cpu", "cuda"), help="where to compute; cuda needs CuPy (%(default)s)"
    )
    given = vars(parser.parse_args(arguments))
    interpreters = {peer: python for peer in PEERS if (python := given.pop(peer))}
    files = {"json_path": given.pop("json"), "chart_path": given.pop("chart")}
    try:
        bench(interpreters=interpreters, **files, **given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
