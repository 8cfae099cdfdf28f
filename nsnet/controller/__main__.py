"""`python -m nsnet.controller --cluster NAME [--supervise]`."""

import sys

USAGE = "usage: python -m nsnet.controller --cluster NAME [--supervise]\n"


def main(argv: list[str]) -> int:
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
