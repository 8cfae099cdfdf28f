"""`python -m nsnet.controller --cluster NAME [--supervise]`."""

import sys

from nsnet.errors import NsnetError

USAGE = "usage: python -m nsnet.controller --cluster NAME [--supervise]\n"


def main(argv: list[str]) -> int:
    try:
        return _main(argv)
    except NsnetError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _main(argv: list[str]) -> int:
    match argv:
        case ["--cluster", cluster]:
            from nsnet.controller.loop import run

            return run(cluster)
        case ["--cluster", cluster, "--supervise"]:
            from nsnet.controller.supervise import supervise

            return supervise(cluster)
    sys.stderr.write(USAGE)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
